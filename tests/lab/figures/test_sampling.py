import itertools

import numpy as np
import pytest
import torch

from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import sample
from charrnn.lab.figures.sampling import (
    plot_draw,
    plot_following,
    plot_frontier,
    plot_kept,
    plot_measures_over,
    plot_profiles,
)
from charrnn.lab.probes.distribution import next_character_probabilities
from charrnn.models.recurrent import CharLSTM


def overlapping(texts):
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("uniform", [0.0, 0.07, 0.25, 0.51, 0.8, 0.999])
def test_the_draw_is_the_librarys(uniform):
    names, probabilities = list("a\n dz"), np.array([0.1, 0.0, 0.4, 0.25, 0.25])
    figure = plot_draw(names, probabilities, uniform)
    with np.errstate(divide="ignore"):
        drawn = sample(np.log(probabilities), uniform)
    shown = names[int(drawn)].replace(" ", "␣").replace("\n", "⏎")
    assert f"{uniform:.3f} falls into {shown}, " in figure.alt
    pieces = figure.figure.axes[0].patches
    assert [piece.get_width() for piece in pieces] == pytest.approx(probabilities)
    assert pieces[-1].get_x() + pieces[-1].get_width() == pytest.approx(1)
    assert figure.figure.axes[0].lines[0].get_xdata()[0] == uniform
    figure.figure.draw_without_rendering()
    assert not overlapping(figure.figure.axes[0].texts)


def test_squares_are_kept_and_crosses_are_out():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = TextGenerator(CharLSTM(6, 4), CharTokenizer("\n abcd"))
    rules = {"one": lambda p: p == p.max(), "rare": lambda p: p <= np.sort(p)[1]}
    figure = plot_kept(generator, ("a", "bc"), rules, count=5)
    for prompt, above, below in zip(("a", "bc"), figure.figure.axes[:2], figure.figure.axes[2:], strict=True):
        likeliest = next_character_probabilities(generator, prompt, 5)
        assert [bar.get_height() for bar in above.patches] == pytest.approx([p for _, p in likeliest])
        names = [label.get_text().replace("␣", " ").replace("⏎", "\n") for label in below.get_xticklabels()]
        assert names == [character for character, _ in likeliest]
        kept = [line.get_xdata().tolist() for line in below.lines[::2]]
        out = [line.get_xdata().tolist() for line in below.lines[1::2]]
        assert (kept, out) == ([[0], [4]], [[1, 2, 3, 4], [0, 1, 2, 3]])
        assert [label.get_text() for label in below.get_yticklabels()] == ["one: 1", "rare: 2"]  # of all, not of five
    assert figure.alt.count("kept are: one 1, rare 2") == 2


@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_measure_has_its_panel(logarithmic):
    measures = {"words": [0.1, 0.5, 0.9], "bits": [3.0, 2.0, 1.0]}
    figure = plot_measures_over([1, 2, 8], measures, "width", {"bits": 2.5}, logarithmic)
    words, bits = figure.figure.axes
    assert words.lines[0].get_ydata().tolist() == [0.1, 0.5, 0.9]
    assert bits.lines[0].get_ydata().tolist() == [3.0, 2.0, 1.0]
    assert bits.lines[1].get_ydata()[0] == 2.5
    assert len(words.lines) == 1
    assert "bits: 3.00 at 1, 2.00 at 2, 1.00 at 8; human text 2.50" in figure.alt
    assert (words.get_xscale() == "log") == logarithmic
    figure.figure.draw_without_rendering()
    assert not overlapping([axes.title for axes in figure.figure.axes])


def test_profiles_tell_of_the_whole_text_and_show_its_beginning():
    bits = np.array([1.0, 3.0] * 50 + [8.0] * 100)
    figure = plot_profiles({"mine": bits, "yours": np.ones(20)}, shown=60)
    first, second = figure.figure.axes
    assert [bar.get_height() for bar in first.patches] == bits[:60].tolist()
    assert len(second.patches) == 20
    assert f"mine: mean {bits.mean():.2f} bits, deviation {bits.std():.2f}, 50% of the characters above 4" in figure.alt


def test_the_smooth_curve_is_the_mean_around_each_place():
    bits = np.random.default_rng(0).random(50)
    figure = plot_following(np.linspace(1, 2, 50), bits, window=5)
    _, smooth = figure.figure.axes[1].lines
    places, values = smooth.get_data()
    assert places[0] == 2
    assert places[-1] == 47
    for place, value in zip(places, values, strict=True):
        assert value == pytest.approx(bits[place - 2 : place + 3].mean())
    follows = plot_following(np.arange(50.0), np.arange(50.0), window=5)
    assert "correlation is 1.00" in follows.alt


def test_a_frontier_names_each_setting():
    curves = {"cold": [(0.5, 0.9, 0.7), (1, 0.8, 0.9)], "top": [(5, 0.85, 0.75)]}
    figure = plot_frontier(curves, "words", "variety", "A trade")
    axes = figure.figure.axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0.9, 0.7], [0.8, 0.9]], [[0.85, 0.75]]]
    assert [text.get_text() for text in axes.texts] == ["0.5", "1", "5"]
    assert "cold 0.5 at (0.900, 0.700), 1 at (0.800, 0.900); top 5 at (0.850, 0.750)" in figure.alt
    with pytest.raises(ValueError, match="at most 4 rules, got 5"):
        plot_frontier({str(n): curves["top"] for n in range(5)}, "", "", "")
