import html
import io
import math

import ipywidgets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import charrnn
from charrnn import lab
from charrnn.data.characters import spoken
from charrnn.data.streams import CharDataset
from charrnn.data.tokenizer import CharTokenizer
from charrnn.errors import ConfigError
from charrnn.generation.generator import TextGenerator
from charrnn.lab import profiles
from charrnn.lab.figures.labels import percent
from charrnn.lab.panels.generation import SHOWN, text_to_html
from charrnn.lab.probes.distribution import next_character_probabilities
from charrnn.models.recurrent import CharLSTM
from charrnn.training.events import Evaluated, Finished, Logged, Stepped

RECORDS = [
    {"event": "logged", "step": 10, "loss": 2.5},
    {"event": "evaluated", "step": 10, "loss": 2.25},
    {"event": "logged", "step": 20, "loss": 1.5},
]


@pytest.fixture
def generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextGenerator(CharLSTM(12, 8), CharTokenizer("\n abcdefg<&>"))


# -------------------------------------------------------------------------------------------------------- profile


def test_profiles(monkeypatch):
    monkeypatch.delenv("CHARRNN_PROFILE", raising=False)
    assert lab.profile().name == "laptop"
    assert lab.profile().checkpoints.name == "checkpoints"
    monkeypatch.setenv("CHARRNN_PROFILE", "ci")
    assert lab.profile().budget["max_steps"] <= 200
    assert lab.profile().checkpoints.name != "checkpoints"  # a test never replaces a reader's model
    monkeypatch.setenv("CHARRNN_PROFILE", "moon")
    with pytest.raises(ConfigError, match="CHARRNN_PROFILE: expected one of ci, laptop, gpu, got 'moon'"):
        lab.profile()


@pytest.mark.parametrize("name", ["laptop", "gpu"])
def test_models_of_a_read_only_course_go_to_the_users_own_folder(monkeypatch, tmp_path, name):
    monkeypatch.setenv("CHARRNN_PROFILE", name)
    monkeypatch.setattr(profiles, "is_writable", lambda folder: folder != profiles.OWN)
    monkeypatch.setattr(profiles.platformdirs, "user_data_path", lambda program: tmp_path / program)
    own = tmp_path / "charrnn" / "checkpoints"
    with pytest.warns(UserWarning, match=f"checkpoints is read-only, so your own models are saved in {own}") as caught:
        assert lab.profile().checkpoints == own
    assert caught[0].filename == __file__


def test_check_machine():
    assert lab.check_machine().row_count >= 7


# ------------------------------------------------------------------------------------------------------- figures


def test_a_figure_looks_as_it_was_drawn_in_fewer_bytes():
    figure = lab.plot_saturation({"f": np.random.default_rng(0).random((50, 20))})
    drawn = io.BytesIO()
    figure.figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    small = figure.png()
    assert len(small) < len(drawn.getvalue()) / 2
    shown, whole = (np.asarray(Image.open(file).convert("RGB"), float) for file in (io.BytesIO(small), drawn))
    assert shown.shape == whole.shape
    assert np.abs(shown - whole).max() < 64  # of 255, at the edge of a letter
    assert np.abs(shown - whole).mean() < 1


def test_the_bars_are_the_models_probabilities(generator):
    likeliest = next_character_probabilities(generator, "abc", 12)
    assert sum(probability for _, probability in likeliest) == pytest.approx(1, abs=1e-5)
    assert [probability for _, probability in likeliest] == sorted((p for _, p in likeliest), reverse=True)
    figure = lab.plot_next_character(generator, "abc", 4)
    bars = figure.figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([p for _, p in likeliest[:4]])
    assert f"{spoken(likeliest[0][0])} has probability {likeliest[0][1]:.0%}" in figure.alt


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.004, "<1%"), (0.014, "1%"), (0.5, "50%"), (0.995, ">99%"), (1, "100%")]
)
def test_percent_never_rounds_to_nothing_or_everything(share, text):
    assert percent(share) == text


def test_the_loss_curve_shows_every_number():
    figure = lab.plot_losses(RECORDS, vocab_size=12)
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.figure.axes[0].lines}
    assert lines["training"] == [[10, 2.5], [20, 1.5]]
    assert lines["validation"] == [[10, 2.25]]
    assert "training loss goes from 2.500 to 1.500 and validation loss 2.250;" in figure.alt
    assert f"{math.log(12):.2f}" in figure.alt


def test_an_empty_loss_curve_is_a_figure_too():
    figure = lab.plot_losses([], vocab_size=12)
    assert figure.png().startswith(b"\x89PNG")
    assert "no training loss and no validation loss" in figure.alt


def test_a_figure_is_shown_with_its_alt_text(monkeypatch):
    shown = []
    monkeypatch.setattr("charrnn.lab.figures.base.display", lambda bundle, **options: shown.append((bundle, options)))
    figure = lab.plot_losses(RECORDS, vocab_size=12)
    figure._ipython_display_()
    ((bundle, _),) = shown
    assert set(bundle) == {"text/html", "text/plain"}  # JupyterLab, Voilà and nbconvert drop the alt text of image/png
    assert bundle["text/plain"] == figure.alt == f"{figure.caption}: {figure.description}"
    assert f'<img alt="{figure.caption}" src="data:image/png;base64,' in bundle["text/html"]
    assert f"<details><summary>Description</summary>{figure.description}</details>" in bundle["text/html"]


def test_a_curve_shows_its_points_and_has_a_tick_for_each():
    figure = lab.plot_curve([1, 10], [3.0, 2.0], "k", "bits", "Title")
    axes = figure.figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 3.0], [10, 2.0]]
    assert axes.get_ylim()[1] > 3
    assert axes.get_xticks().tolist() == [1, 10]
    assert figure.alt == "Line chart of bits over k: 3.00 at 1 to 2.00 at 10."
    assert figure.png().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------------- texts

LINE = "the quick brown fox\njumps over the lazy dog\n"


def test_frequencies_are_those_of_the_text(text_file, text):
    figure = lab.plot_frequencies(charrnn.load_corpus(text_file), 3)
    heights = [bar.get_height() for bar in figure.figure.axes[0].patches]
    expected = sorted((text.count(character) / len(text) for character in set(text)), reverse=True)[:3]
    assert heights == pytest.approx(expected)
    assert f"space is {text.count(' ') / len(text):.1%} of the text" in figure.alt


def test_zipf_draws_a_point_for_every_word_and_character():
    figure = lab.plot_zipf("a b a c a b")
    words, characters, _ = figure.figure.axes[0].lines
    assert words.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert characters.get_ydata().tolist() == [5, 3, 2, 1]
    assert "3 different words, the commonest 3 times and 4 different characters, the commonest 5 times" in figure.alt


@pytest.mark.filterwarnings("ignore:.*too few for")
@given(st.integers(1, 12), st.integers(1, 50), st.integers(0, 60), st.integers(0, 3))
@settings(max_examples=25)
def test_the_figure_of_streams_is_what_the_dataset_delivers(batch_size, seq_length, window, epoch):
    figure = lab.plot_streams(LINE, batch_size, seq_length, window, epoch)
    dataset = CharDataset(CharTokenizer.from_text(LINE).encode(LINE), batch_size, seq_length, seed=1)
    windows = list(dataset.windows(epoch))
    chosen = windows[min(window, len(windows) - 1)]
    decode = CharTokenizer.from_text(LINE).decode
    assert f"row 0 reads {decode(chosen.inputs[0])!r} and must predict {decode(chosen.targets[0])!r}" in figure.alt
    lines = lab.window_table(LINE, batch_size, seq_length, window, epoch).splitlines()
    assert len(lines) == dataset.batch_size
    assert lines[-1].endswith(f"must predict {decode(chosen.targets[-1])!r}")
    axes = figure.figure.axes[0]
    shown = [artist.get_text() for artist in axes.texts if artist.get_fontfamily() == ["DejaVu Sans Mono"]]
    columns = min(dataset.stream_length, 48)
    assert len(shown) == dataset.batch_size * columns
    assert len(axes.patches) == sum(1 for each in windows if each.end - each.inputs.shape[1] < columns)


def test_the_ladder_shows_counting_and_networks():
    ladder = {"uniform": 3.0, "unigram": 2.5, "2-gram": 2.75}
    figure = lab.plot_ladder(ladder, {"mine": 2.0, "yours": 1.5})
    axes = figure.figure.axes[0]
    assert axes.lines[0].get_ydata().tolist() == [3.0, 2.5, 2.75]
    assert [line.get_label() for line in axes.lines[1:]] == ["mine: 2.00", "yours: 1.50"]
    assert len({line.get_linestyle() for line in axes.lines[1:]}) == 2  # told apart without colour
    assert figure.alt.endswith("the best by counting is the unigram with 2.50; mine 2.00; yours 1.50.")


@pytest.mark.parametrize(
    ("batch_size", "seq_length", "window", "epoch"), [(1, 1, 0, 0), (8, 1, 12, 0), (1, 24, 12, 5), (8, 24, 0, 5)]
)
def test_the_sliders_of_the_streams_draw_what_the_functions_do(batch_size, seq_length, window, epoch):
    panel = lab.StreamsPanel(LINE * 6)
    values = {"batch_size": batch_size, "seq_length": seq_length, "window": window, "epoch": epoch}
    for name, value in values.items():
        panel.controls[name].value = value
    assert panel.image.value == lab.plot_streams(LINE * 6, **values).to_html(folded=False)
    assert panel.words.value == text_to_html(lab.window_table(LINE * 6, **values))
    for name, control in panel.controls.items():
        assert f"t-{name}" in control._dom_classes
        assert control.description == name


# ------------------------------------------------------------------------------------------------------- live plot


def test_the_live_plot_draws_what_a_run_tells():
    plot = lab.LivePlot(12, every=0)
    first = plot._image.value
    plot(Stepped(10, 0.5, 1.0, 0.5))
    plot(Logged(10, 0.5, 1.0, loss=2.5, grad_norm=1.0, learning_rate=1.0, tokens_per_second=1.0))
    plot(Evaluated(10, 0.5, 1.0, loss=2.25, best=True))
    assert plot._bar.value == 0.5
    assert plot._image.value != first
    plot(Finished(20, 1.0, 2.0, best_loss=2.25, stopped=False))
    assert plot._bar.value == 1
    assert [(record["event"], record["loss"]) for record in plot.records] == [("logged", 2.5), ("evaluated", 2.25)]
    assert isinstance(plot.view, ipywidgets.Widget)


def test_the_live_plot_does_not_draw_too_often():
    plot = lab.LivePlot(12, every=1000)
    first = plot._image.value
    plot(Logged(10, 0.5, 1.0, loss=2.5, grad_norm=1.0, learning_rate=1.0, tokens_per_second=1.0))
    assert plot._image.value == first
    plot(Finished(20, 1.0, 2.0, best_loss=None, stopped=False))
    assert plot._image.value != first


# ------------------------------------------------------------------------------------------------------- panel


@pytest.mark.parametrize("temperature", [0, 0.5, 2])
@pytest.mark.parametrize("top_k", [0, 1, 12])
@pytest.mark.parametrize("top_p", [0.05, 1])
@pytest.mark.parametrize("length", [0, 100])
def test_the_panel_writes_what_the_library_does(generator, temperature, top_k, top_p, length):
    panel = lab.GenerationPanel(generator)
    values = {"prompt": "ab", "temperature": temperature, "top_k": top_k, "top_p": top_p, "length": length, "seed": "5"}
    for name, value in values.items():
        panel.controls[name].value = value
    panel.generate_button.click()
    assert panel.wait(20)
    assert panel.text == generator.generate(
        "ab", length, temperature=temperature, top_k=top_k or None, top_p=top_p, seed=5
    )
    assert panel.output.value == text_to_html(panel.text)


@pytest.mark.parametrize("typed", ["1e3", "2.7", "", "seven", "0x10", "1 2", "--1", "٣", "9" * 5000])
def test_a_seed_that_is_no_whole_number_is_refused(generator, typed):
    panel = lab.GenerationPanel(generator)
    panel.controls["prompt"].value = "ab"
    panel.controls["seed"].value = typed
    panel.generate_button.click()
    assert panel.wait(20)
    assert panel.text == ""
    assert 'role="alert"><b>Not generated:</b> seed: expected a whole number such as 7, got ' in panel.message.value
    assert html.escape(repr(typed)[:100]) in panel.message.value
    assert not panel.generate_button.disabled
    panel.controls["seed"].value = " 7 "
    panel.generate_button.click()
    assert panel.wait(20)
    assert panel.text == generator.generate("ab", 300, temperature=0.8, seed=7)
    assert panel.message.value == ""


def test_the_panel_shows_markup_as_text(generator):
    panel = lab.GenerationPanel(generator)
    panel.controls["prompt"].value = "<b>&"
    panel.controls["length"].value = 0
    panel.generate()
    assert panel.wait(20)
    assert "&lt;b&gt;&amp;" in panel.output.value


def test_a_wrong_prompt_is_a_sentence_in_the_panel(generator):
    panel = lab.GenerationPanel(generator)
    panel.controls["prompt"].value = "Z"
    panel.generate()
    assert panel.wait(20)
    assert 'role="alert"' in panel.message.value
    assert "got &#x27;Z&#x27; (U+005A) at position 0" in panel.message.value
    assert not panel.generate_button.disabled
    panel.controls["prompt"].value = "a"
    panel.generate()
    assert panel.wait(20)
    assert "alert" not in panel.message.value


def test_stop_is_heard_while_the_panel_writes(generator):
    panel = lab.GenerationPanel(generator)
    values = panel.settings() | {"prompt": "ab", "length": None}  # beyond where the slider ends
    panel.settings = lambda: values
    panel.generate_button.click()
    assert panel.generate_button.disabled
    while len(panel.text) < 100:
        assert not panel.wait(0.01)
    panel.stop_button.click()
    assert panel.wait(20)
    assert panel.stop_button.disabled
    assert panel.output.value == text_to_html(panel.text)
    assert panel.text == generator.generate("ab", len(panel.text) - 2, temperature=0.8, seed=1)


def test_of_a_long_text_the_end_is_shown():
    assert text_to_html("a" * SHOWN + "b").count("a") < SHOWN + 50
    assert "…" in text_to_html("a" * (SHOWN + 1))
    assert "…" not in text_to_html("a" * SHOWN)


def test_every_control_has_a_class_and_a_label(generator):
    for name, control in lab.GenerationPanel(generator).controls.items():
        assert f"t-{name}" in control._dom_classes
        assert control.description


def test_a_speakers_colon_leaves_less_choice_than_a_q():
    """An answer in notebook 00."""
    generator = charrnn.load_model("checkpoints/shakespeare-lstm")
    (end, surest), (u, sure) = (lab.next_character_probabilities(generator, p, 1)[0] for p in ("TROILUS:", "The q"))
    assert (end, u) == ("\n", "u")
    assert surest > sure > 0.99
