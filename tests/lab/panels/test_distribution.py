import itertools

import ipywidgets
import numpy as np
import pytest
import torch

from charrnn.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, WordTokenizer
from charrnn.generation import logits as processors
from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.sampling import plot_distribution
from charrnn.lab.panels.distribution import DistributionPanel
from charrnn.lab.probes.distribution import entropy, next_distribution
from charrnn.models.recurrent import CharLSTM


@pytest.fixture(autouse=True)
def callbacks_that_raise(monkeypatch):
    """Raise the errors of a button's callback, which ipywidgets would only log."""

    def call(self, *args, **kwargs):
        for callback in self.callbacks:
            callback(*args, **kwargs)

    monkeypatch.setattr(ipywidgets.widgets.widget.CallbackDispatcher, "__call__", call)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    model = CharLSTM(12, 8)
    with torch.no_grad():
        model.head.weight.mul_(40)  # far from uniform
    return TextGenerator(model, CharTokenizer("\n abcdefg<&>"))


SETTINGS = (
    {},
    {"temperature": 0.3},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"typical_p": 0.4},
    {"forbid": "abc"},
    {"temperature": 2.0, "top_k": 5, "top_p": 0.7},
)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompt", ["", "abc\n<"])
def test_the_distributions_are_those_that_a_generator_draws_from(generator, prompt, settings):
    before, after = next_distribution(generator, prompt, **settings)
    assert before.shape == after.shape == (12,)
    assert before.sum() == pytest.approx(1, abs=1e-12)
    assert after.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(before, processors.softmax(generator.next_logits(prompt).astype(float)), rtol=1e-5)
    if not settings:
        np.testing.assert_allclose(before, after)
    written = generator.generate_batch([prompt] * 100, 1, seed=0, **settings)
    counts = np.bincount([generator.tokenizer.encode(text[-1])[0] for text in written], minlength=12)
    assert (counts[after == 0] == 0).all()
    assert np.abs(counts / 100 - after).max() < 0.25  # five standard deviations of a share


def test_a_temperature_over_the_text_and_a_penalty_look_at_what_was_drawn(generator):
    scheduled = next_distribution(generator, "a", temperature=lambda step: 1.0 + step, drawn="bc")
    fixed = next_distribution(generator, "abc", temperature=3.0)
    np.testing.assert_allclose(scheduled, fixed)
    for drawn, text in (("", "b"), ("b", "")):
        before, after = next_distribution(generator, "a" + text, drawn=drawn, repetition_penalty=3.0)
        place = generator.tokenizer.encode("b")[0]
        assert (after[place] < before[place]) == (drawn == "b")  # a prompt is not penalised, in generate either


def test_entropy_is_shannons():
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert entropy(np.array([0.5, 0.25, 0.25, 0])) == pytest.approx(1.5)
    assert str(entropy(np.array([1.0, 0.0]))) == "0.0"


# ------------------------------------------------------------------------------------------------------------ figure


def bars_of(figure):
    outlined, filled = figure.figure.axes[0].containers
    return [bar.get_height() for bar in outlined], [bar.get_height() for bar in filled]


@pytest.mark.parametrize(("settings", "count"), [*((settings, 5) for settings in SETTINGS), ({}, 1), ({}, 50)])
def test_the_bars_are_the_distributions(generator, settings, count):
    figure = plot_distribution(generator, "ab", count, **settings)
    before, after = next_distribution(generator, "ab", **settings)
    outlined, filled = bars_of(figure)
    assert len(outlined) == min(count, 12)
    assert outlined == sorted(outlined, reverse=True)
    assert set(outlined) <= set(before)
    assert max(filled) == after.max()
    kept = int((after > 0).sum())
    assert f"kept are {kept} of 12 tokens" in figure.alt
    legend = [text.get_text() for text in figure.figure.legends[0].texts]
    assert legend[0].endswith(f"{entropy(before):.2f} bits")
    assert legend[1].endswith(f"{entropy(after):.2f} bits")
    assert legend[2] == f"{kept} of 12 kept, {12 - kept} out"


def test_the_cut_stands_between_the_kept_and_the_others(generator):
    (line,) = plot_distribution(generator, "ab", 12, top_k=4).figure.axes[0].lines
    assert line.get_xdata() == [3.5, 3.5]
    assert not plot_distribution(generator, "ab", 12).figure.axes[0].lines
    likeliest = generator.tokenizer.decode([int(generator.next_logits("ab").argmax())])
    figure = plot_distribution(generator, "ab", 12, forbid=likeliest)
    assert not figure.figure.axes[0].lines  # what is out stands on the wrong side of any line
    assert [text.get_text() for text in figure.figure.axes[0].texts].count("out") == 1


def test_words_in_the_figure_do_not_overlap(generator):
    for settings in SETTINGS:
        figure = plot_distribution(generator, "ab" * 40, **settings).figure
        figure.draw_without_rendering()
        axes = figure.axes[0]
        said = [*axes.texts, axes.title, *figure.legends[0].texts, *axes.get_xticklabels()]
        boxes = [text.get_window_extent() for text in said if text.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(),
        BpeTokenizer.from_text("the cat and the hat and the bat\n" * 20, 270),
        WordTokenizer.from_text("the cat and the hat\n" * 20, 10),
    ],
)
def test_any_kind_of_token_has_a_figure(tokenizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = TextGenerator(CharLSTM(tokenizer.vocab_size, 8), tokenizer)
    figure = plot_distribution(generator, "the ", top_k=3).figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_wrong_settings_are_sentences(generator):
    with pytest.raises(ValueError, match="temperature: expected a value greater than or equal to 0, got -1"):
        plot_distribution(generator, "a", temperature=-1)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        plot_distribution(generator, "a", 0)


# ------------------------------------------------------------------------------------------------------------- panel


@pytest.mark.parametrize("top_k", [0, 1, 12])
@pytest.mark.parametrize(
    ("temperature", "top_p", "min_p", "typical_p"), [(0, 0.05, 0, 1), (1, 1, 1, 1), (3, 1, 0, 0.05), (1, 0.9, 0.1, 0.9)]
)
def test_the_sliders_draw_what_the_function_does(generator, monkeypatch, temperature, top_k, top_p, min_p, typical_p):
    monkeypatch.setattr(CaptionedFigure, "to_html", lambda figure, **_: figure.alt)  # drawing takes longest
    panel = DistributionPanel(generator, "ab")
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    for name, value in values.items():
        panel.controls[name].value = value
    off = {"top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1}
    settings = {name: value for name, value in values.items() if value != off.get(name)}
    assert panel.image.value == plot_distribution(generator, "ab", **settings).alt
    assert panel.image.layout.display is None
    assert "alert" not in panel.words.value


def test_the_figure_in_the_panel_is_that_of_the_function(generator):
    panel = DistributionPanel(generator, "ab")
    panel.controls["top_k"].value = 3
    assert panel.image.value == plot_distribution(generator, "ab", top_k=3).to_html(folded=False)


def test_a_wrong_prompt_is_a_sentence_and_a_right_one_heals_it(generator):
    panel = DistributionPanel(generator, "ab")
    panel.controls["prompt"].value = "Z"
    assert 'role="alert"' in panel.words.value
    assert "got &#x27;Z&#x27;" in panel.words.value
    assert panel.image.layout.display == "none"
    panel.controls["prompt"].value = ""
    assert "alert" not in panel.words.value
    assert "at the start of a text" in panel.image.value


def test_every_control_has_a_class_and_a_name(generator):
    for name, control in DistributionPanel(generator, "ab").controls.items():
        assert f"t-{name}" in control._dom_classes
        assert control.description
        assert not control.continuous_update
