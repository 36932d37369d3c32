import itertools

import ipywidgets
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.sampling import plot_choice
from charrnn.lab.panels.chooser import MOST, ChooserPanel
from charrnn.lab.probes.distribution import (
    Choice,
    choose,
    entropy,
    next_character_probabilities,
    next_distribution,
    tally,
)
from charrnn.lab.probes.surprisal import surprisal
from charrnn.models.recurrent import CharGRU, CharLSTM


@pytest.fixture(autouse=True)
def callbacks_that_raise(monkeypatch):
    """Raise the errors of a button's callback, which ipywidgets would only log."""

    def call(self, *args, **kwargs):
        for callback in self.callbacks:
            callback(*args, **kwargs)

    monkeypatch.setattr(ipywidgets.widgets.widget.CallbackDispatcher, "__call__", call)


@pytest.fixture
def without_files(monkeypatch):
    """Show a figure as its alt text, because drawing takes longest."""
    monkeypatch.setattr(CaptionedFigure, "to_html", lambda figure, **_: figure.alt)


@pytest.fixture(scope="module", params=[CharLSTM, CharGRU])
def generator(request):
    torch.manual_seed(0)
    model = request.param(12, 8, num_layers=2)
    with torch.no_grad():
        model.head.weight.mul_(20)
    return TextGenerator(model, CharTokenizer("\n abcdefg<&>"))


def test_a_choice_has_the_bits_of_the_distribution(generator):
    before, _ = next_distribution(generator, "ab")
    for token, character in enumerate(generator.tokenizer.characters):
        choice = choose(generator, "ab", character)
        assert choice.character == character
        assert 2**-choice.bits == pytest.approx(before[token])
        assert choice.expected == pytest.approx(entropy(before))


def test_choices_along_a_text_are_its_surprisal(generator):
    text = "bad <cab>"
    choices = [choose(generator, "\n" + text[:place], text[place]) for place in range(len(text))]
    np.testing.assert_allclose([each.bits for each in choices], surprisal(generator, text), rtol=1e-4, atol=1e-5)


def test_the_account_adds_up():
    assert tally([]) == "No character chosen yet."
    words = tally([Choice("a", 1.0, 2.5), Choice("b", 2.0, 1.5)])
    assert words.startswith("2 chosen, with 3.0 bits. The model expected 4.0,")
    assert words.endswith("surprise it less than draws would.")
    assert tally([Choice("a", 5.0, 2.5)]).endswith("surprise it more than draws would.")


@pytest.mark.parametrize(("text", "count"), [("", 1), ("a", 6), ("bad <cab>\n" * 5, MOST)])
def test_the_figure_shows_the_likeliest_and_the_state(generator, text, count):
    figure = plot_choice(generator, text, count)
    left, right, _ = figure.figure.axes
    likeliest = next_character_probabilities(generator, text, count)
    assert [bar.get_height() for bar in left.patches] == pytest.approx([p for _, p in likeliest])
    shown = (text or "\n")[-24:]
    assert right.images[0].get_array().shape == (8, len(shown))  # all 8 units there are
    assert "".join(label.get_text() for label in right.get_xticklabels()).replace("⏎", "\n").replace("␣", " ") == shown
    figure.figure.draw_without_rendering()
    for axes in (left, right):
        boxes = [label.get_window_extent() for label in (*axes.texts, *axes.get_xticklabels()) if label.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def shown_buttons(panel):
    return [button for button in panel.buttons if button.layout.display is None]


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize("prompt", ["", "a", "ab\n<&>"])
@pytest.mark.parametrize("count", [1, 6, MOST])
def test_the_buttons_are_the_likeliest(generator, prompt, count):
    panel = ChooserPanel(generator, "g")
    panel.controls["count"].value = count
    panel.controls["prompt"].value = prompt
    buttons = shown_buttons(panel)
    likeliest = next_character_probabilities(generator, prompt, count)
    assert len(buttons) == count
    for button, (character, _) in zip(buttons, likeliest, strict=True):
        assert button.description.split("  ")[0].replace("␣", " ").replace("⏎", "\n") == character
    assert panel.box.image.value == plot_choice(generator, prompt, count).alt


@pytest.mark.usefixtures("without_files")
def test_a_click_appends_and_undo_takes_back(generator):
    panel = ChooserPanel(generator, "ab")
    before = panel.words.value, [button.description for button in panel.buttons]
    assert panel.undo_button.disabled
    text = "ab"
    for rank in (2, 0, 5):
        character, _ = next_character_probabilities(generator, text, 6)[rank]
        panel.buttons[rank].click()
        assert panel.choices[-1] == choose(generator, text, character)
        text += character
        assert panel.text == text
    assert tally(panel.choices) in panel.words.value
    for _ in range(3):
        panel.undo_button.click()
    assert panel.text == "ab"
    assert panel.undo_button.disabled
    assert (panel.words.value, [button.description for button in panel.buttons]) == before


@pytest.mark.usefixtures("without_files")
def test_what_the_model_chooses_is_drawn_from_its_distribution(generator, monkeypatch):
    monkeypatch.setattr(
        "charrnn.lab.figures.sampling.plot_choice", lambda *arguments: CaptionedFigure(Figure(), "none", "none")
    )
    drawn = []
    for seed in range(60):
        panel = ChooserPanel(generator, "ab", seed=seed)
        panel.model_button.click()
        drawn.append(panel.choices[0].character)
    before, _ = next_distribution(generator, "ab")
    shares = np.array([drawn.count(character) / 60 for character in generator.tokenizer.characters])
    assert np.abs(shares - before).max() < 0.3  # nearly five standard deviations
    again = ChooserPanel(generator, "ab", seed=59)
    again.model_button.click()
    assert again.choices[0].character == drawn[-1]


@pytest.mark.usefixtures("without_files")
def test_a_new_prompt_begins_anew_and_a_wrong_one_is_a_sentence(generator):
    panel = ChooserPanel(generator, "ab")
    panel.buttons[0].click()
    panel.controls["count"].value = 3
    assert len(panel.choices) == 1  # another number of buttons changes nothing else
    panel.controls["prompt"].value = "Z"
    assert panel.choices == []
    assert 'role="alert"' in panel.box.words.value
    assert "got &#x27;Z&#x27;" in panel.box.words.value
    assert shown_buttons(panel) == []
    assert panel.model_button.disabled
    panel.controls["prompt"].value = "a"
    assert "alert" not in panel.box.words.value
    assert len(shown_buttons(panel)) == 3
    assert not panel.model_button.disabled


@pytest.mark.usefixtures("without_files")
def test_markup_is_text_and_controls_have_classes(generator):
    panel = ChooserPanel(generator, "<b>&")
    assert "&lt;b&gt;&amp;" in panel.words.value
    assert "<b>" not in panel.words.value
    for name, control in panel.controls.items():
        assert f"t-{name}" in control._dom_classes
        assert control.description
        assert not control.continuous_update


def test_the_figure_in_the_panel_is_a_file(generator):
    assert "data:image/png;base64," in ChooserPanel(generator, "ab").box.image.value
