import numpy as np
import pytest
import torch

import charrnn
from charrnn import lab
from charrnn.data.tokenizer import CharTokenizer
from charrnn.lab.figures.states import LONGEST, MARKERS
from charrnn.models.recurrent import CharLSTM, CharRNN

TEXT = "the cat, and Anne\nsat by a lamppost on the mat\n" * 4


@pytest.fixture
def generator():
    tokenizer = CharTokenizer.from_text(TEXT)
    return charrnn.create_model(tokenizer, type="rnn", hidden_size=8, num_layers=1)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("kind", [CharRNN, CharLSTM])
def test_the_states_are_those_that_the_logits_are_read_off(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(12, 8, num_layers=2)
    tokens = torch.randint(12, (3, 7), generator=torch.Generator().manual_seed(1))
    states = lab.read_states(model, tokens)
    assert states.shape == (3, 7, 8)
    assert not states.requires_grad
    assert torch.allclose(model.head(states), model(tokens)[0], atol=1e-6)


def test_components_are_orthonormal_and_hold_the_most_variance():
    states = normal(50, 6) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.1])
    components = lab.principal_components(states, 6)
    assert torch.allclose(components.axes @ components.axes.T, torch.eye(6, dtype=torch.float64))
    points = components.project(states)
    variance = points.var(0)
    assert torch.allclose(components.share, variance / states.var(0).sum())
    assert variance.tolist() == sorted(variance, reverse=True)
    assert torch.allclose(points.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(points.T.cov(), torch.diag(variance), atol=1e-12)  # independent of each other


def test_the_sign_of_an_axis_does_not_depend_on_that_of_the_states():
    states = normal(20, 4)
    axes = lab.principal_components(states).axes
    assert torch.allclose(axes, lab.principal_components(-states).axes)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


def test_share_between():
    points = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 5.0], [2.0, 5.0]])
    assert lab.share_between(points, ["a", "a", "b", "b"]) == pytest.approx(1)
    assert lab.share_between(points, ["a", "b", "a", "b"]) == pytest.approx(0)
    assert lab.share_between(points, ["a"] * 4) == pytest.approx(0)


# ------------------------------------------------------------------------------------------------------- groups


def test_every_character_has_a_place_in_its_word():
    assert lab.word_places("a be, letters") == [
        *("1st letter", "between words"),
        *("1st letter", "2nd letter", "between words", "between words"),
        *("1st letter", "2nd letter", "3rd letter", "4th or 5th", "4th or 5th", "6th or later", "6th or later"),
    ]


def test_every_character_is_of_a_kind():
    assert lab.character_kinds(" \n,aBz7é") == [
        *("space", "newline", "punctuation", "vowel", "capital", "consonant", "punctuation", "consonant"),
    ]


def test_groups_look_different_without_colour():
    for groups in (list(MARKERS)[:6], list(MARKERS)[6:]):
        assert len({MARKERS[name][1] for name in groups}) == len(groups)


# ------------------------------------------------------------------------------------------------------- figures


def test_the_plane_shows_every_state_in_its_group():
    points, groups = normal(len(TEXT), 2), lab.word_places(TEXT)
    figure = lab.plot_states(points, groups, torch.tensor([0.3, 0.2]), "Title", path=("ab", points[:2]))
    axes = figure.figure.axes[0]
    drawn = {dots.get_label(): len(dots.get_offsets()) for dots in axes.collections}
    assert drawn == {name: groups.count(name) for name in groups}
    assert [artist.get_text() for artist in axes.texts] == ["a", "b"]
    assert f"{len(TEXT)} states in a plane that holds 50% of their variance" in figure.alt
    first = points[[i for i, name in enumerate(groups) if name == "1st letter"]].mean(0)
    assert f"1st letter ({first[0]:.1f}, {first[1]:.1f})" in figure.alt
    assert "the path of 'ab'" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


def test_a_matrix_shows_its_numbers_while_there_is_room():
    values = torch.tensor([[0.25, 0.5, 1.0], [0.75, 0.5, 0.0]])
    figure = lab.plot_matrix(values, ["a", "b"], ["x", "y", "z"], "Title", marked=[1, 0, 0])
    axes = figure.figure.axes[0]
    assert [artist.get_text() for artist in axes.texts] == ["0.25", "0.50", "1.00", "0.75", "0.50", "0.00"]
    assert [box.get_xy() for box in axes.patches] == [(-0.48, 0.52), (0.52, -0.48), (1.52, -0.48)]
    assert figure.alt.startswith("Table of 2 rows and 3 columns: x: a 0.25, b 0.75; y: ")
    assert not lab.plot_matrix(torch.zeros(9, 9), "abcdefghi", "abcdefghi", "Title").figure.axes[0].texts


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_the_colours_of_a_matrix_get_steadily_lighter_or_darker(low):
    colours = lab.plot_matrix(torch.zeros(2, 2), "ab", "xy", "Title", low=low).figure.axes[0].images[0].get_cmap()
    lightness = np.diff(colours(np.linspace(0, 1, 20))[:, :3] @ [0.2126, 0.7152, 0.0722])
    assert (lightness > 0).all() or (lightness < 0).all()


@pytest.mark.parametrize("step", [1, 3, 45, 99])
def test_a_reading_shows_what_was_read_and_nothing_beyond(generator, step):
    text = TEXT[:50]
    states = normal(50, 8)
    components = lab.principal_components(states)
    figure = lab.plot_reading(text, states, components, components.project(states), lab.word_places(text), step)
    read = text[: min(step, 50)][-LONGEST:]
    assert f"after reading {read!r}" in figure.alt
    left, right = figure.figure.axes
    assert len(right.texts) == len(read)
    assert len(right.patches) == len(read) - 1  # an arrow from each character to the next
    groups = dict.fromkeys(lab.word_places(text))
    assert {entry.get_text() for entry in right.get_legend().get_texts()} == set(groups)
    assert left.images[0].get_array().count() == 8 * len(read)


# ------------------------------------------------------------------------------------------------------- panel


@pytest.mark.parametrize("text", ["a", "the cat", "the mat on the lamppost sat by the cat and Anne"])
@pytest.mark.parametrize("step", [1, 5, 47])
def test_the_panel_draws_what_the_function_does(generator, text, step):
    panel = lab.StatesPanel(generator, TEXT)
    panel.controls["text"].value = text
    assert panel.controls["step"].max == panel.controls["step"].value == len(text)
    panel.controls["step"].value = min(step, len(text))
    tokens = torch.tensor(generator.tokenizer.encode(text).astype("int64"))
    states = lab.read_states(generator.model, tokens[None])[0]
    whole = lab.read_states(generator.model, torch.tensor(generator.tokenizer.encode(TEXT).astype("int64"))[None])[0]
    points = panel.components.project(whole)
    figure = lab.plot_reading(text, states, panel.components, points, lab.word_places(TEXT), step)
    assert panel.image.value == figure.to_html(folded=False)
    assert "alert" not in panel.words.value


def test_the_panel_says_what_it_cannot_read_and_goes_on(generator):
    panel = lab.StatesPanel(generator, TEXT)
    panel.controls["text"].value = "the Zoo"
    assert 'role="alert"' in panel.words.value
    assert "got &#x27;Z&#x27;" in panel.words.value
    panel.controls["text"].value = ""
    assert "type a text" in panel.words.value
    panel.controls["text"].value = "a"
    assert "alert" not in panel.words.value


def test_every_control_has_a_class_and_a_label(generator):
    for name, control in lab.StatesPanel(generator, TEXT).controls.items():
        assert f"t-{name}" in control._dom_classes
        assert control.description == name
        assert not control.continuous_update
