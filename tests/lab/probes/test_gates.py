import math

import numpy as np
import pytest
import torch

from charrnn import lab
from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator
from charrnn.lab.panels.gates import LONGEST, UNITS
from charrnn.lab.probes import gates
from charrnn.models.recurrent import CharGRU, CharLSTM, CharRNN

TEXT = "abc de\nfga b\ncd"
TOKENIZER = CharTokenizer("\n abcdefg")
MODELS = {
    "lstm": lambda: CharLSTM(9, 6, num_layers=3),
    "gru": lambda: CharGRU(9, 6, num_layers=3),
    "layer norm": lambda: CharLSTM(9, 6, num_layers=3, layer_norm=True),
    "residual": lambda: CharGRU(9, 6, num_layers=3, residual=True),
}


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextGenerator(MODELS[name](), TOKENIZER)


def parts(state):
    return {"h": state[0], "c": state[1]} if isinstance(state, tuple) else {"h": state}


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_gates_end_in_the_models_own_state(name, layer):
    model = made(name).model.double()
    tokens = torch.randint(9, (4, 11), generator=torch.Generator().manual_seed(1))
    values = gates.gate_activations(model, tokens, layer)
    assert {each.shape for each in values.values()} == {(4, 11, 6)}
    _, state = model(tokens)
    for part, tensor in parts(state[layer]).items():
        np.testing.assert_allclose(values[part][:, -1], tensor.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_the_gates_obey_the_equations():
    values = gates.read_gates(made("lstm"), TEXT)
    i, f, g, o, c, h = (values[name] for name in "ifgoch")
    np.testing.assert_allclose(c[1:], f[1:] * c[:-1] + i[1:] * g[1:], atol=1e-6)
    np.testing.assert_allclose(h, o * np.tanh(c), atol=1e-6)
    values = gates.read_gates(made("gru"), TEXT)
    z, n, h = (values[name] for name in "znh")
    np.testing.assert_allclose(h[1:], (1 - z[1:]) * n[1:] + z[1:] * h[:-1], atol=1e-6)


def test_runs_go_from_one_wipe_to_the_next():
    values = np.array([[0.0, 1.0, 0.5, 0.05, 0.0], [1.0, 0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.9, 0.0, 1.0]])
    assert gates.run_lengths(values).tolist() == [3, 1, 2]
    assert len(gates.run_lengths(np.ones((2, 5)))) == 0


def test_what_cannot_be_read_is_refused():
    with torch.random.fork_rng(devices=[]):
        plain = CharRNN(9, 6)
    with pytest.raises(ValueError, match="expected a network with gates, a GRU or an LSTM, got type rnn"):
        gates.gate_activations(plain, torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="layer: expected 0 to 2, got 3"):
        gates.gate_activations(made("gru").model, torch.zeros(1, 1, dtype=torch.int64), layer=3)
    with pytest.raises(ValueError, match="at least one character"):
        gates.read_gates(made("gru"), "")


# -------------------------------------------------------------------------------------------------------- measuring


def test_the_busiest_units_vary_most():
    values = np.random.default_rng(0).normal(size=(50, 4)) * [1, 3, 0, 2]
    assert gates.busiest_units(values, 3) == [1, 3, 0]


def test_saturation_counts_each_unit_over_all_streams():
    values = np.array([[[0.05, 0.5], [0.95, 0.5]], [[0.0, 0.5], [0.2, 0.91]]])  # (B, T, H)
    shut, opened = gates.saturation(values)
    assert shut.tolist() == [0.5, 0]
    assert opened.tolist() == [0.25, 0.25]


def test_positions_start_again_at_each_newline():
    tokens = np.array([[5, 0, 7, 8, 0, 0, 9], [0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1, 1]])
    positions = gates.line_positions(tokens, newline=0)
    np.testing.assert_array_equal(positions[0], [np.nan, 0, 1, 2, 0, 0, 1])
    np.testing.assert_array_equal(positions[1], range(7))
    assert np.isnan(positions[2]).all()


def test_correlations_are_those_of_numpy():
    random = np.random.default_rng(0)
    values, feature = random.normal(size=(3, 40, 5)), random.normal(size=(3, 40))
    feature[0, :7] = np.nan
    values[..., 4] = 2.0
    found = gates.correlations(values, feature)
    known = ~np.isnan(feature)
    for unit in range(4):
        assert found[unit] == pytest.approx(np.corrcoef(values[known][:, unit], feature[known])[0, 1])
    assert math.isnan(found[4])


# --------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("name", ["i", "f", "g", "o", "c", "h"])
def test_the_map_shows_the_values(name):
    values = gates.read_gates(made("lstm"), TEXT)[name]
    figure = lab.plot_gates(TEXT, values, name, [3, 1])
    axes = figure.figure.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), values[:, [3, 1]].T)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(TEXT.replace("\n", "⏎").replace(" ", "␣"))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["3", "1"]
    low, high = axes.images[0].get_clim()
    shown = values[:, [3, 1]]
    assert low <= shown.min() <= shown.max() <= high
    assert (low == 0) == (name in gates.SIGMOIDS)
    assert f"lowest {shown.min():.2f}" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


def test_a_map_needs_a_value_for_each_character():
    with pytest.raises(ValueError, match="each of 2 characters, got 3"):
        lab.plot_gates("ab", np.zeros((3, 2)), "f", [0])


def test_a_unit_shades_each_character():
    values = np.linspace(-1, 1, len(TEXT))
    figure = lab.plot_unit(TEXT, values, "unit 7")
    axes = figure.figure.axes[0]
    assert len(axes.patches) == len(axes.texts) == len(TEXT)
    lightness = [sum(patch.get_facecolor()[:3]) for patch in axes.patches]
    assert lightness == sorted(lightness)
    assert figure.alt == "3 lines of text, each character shaded by unit 7: from -1.00 after a to 1.00 after d."
    assert lab.plot_unit("a", np.zeros(1), "unit").png().startswith(b"\x89PNG")


def test_the_scatter_has_a_point_for_each_unit():
    values = gates.read_gates(made("lstm"), TEXT)
    figure = lab.plot_saturation({name: values[name] for name in "ifo"})
    assert len(figure.figure.axes) == 3
    for axes, name in zip(figure.figure.axes, "ifo", strict=True):
        np.testing.assert_array_equal(axes.lines[1].get_xydata(), np.transpose(gates.saturation(values[name])))
    assert "6 units" in figure.alt


def test_means_by_position_are_those_of_the_groups():
    positions = np.array([[0, 1, 2, 0, 1, 2], [np.nan, 0, 1, 2, 3, 0]])
    values = np.arange(12.0).reshape(2, 6)
    axes = lab.plot_by_position(positions, values, "unit").figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, (0 + 3 + 7 + 11) / 4], [1, 13 / 3], [2, 16 / 3]]


def test_curves_are_told_apart_without_colour():
    curves = {
        name: {"x": [1, 2, 3], "mean": [number, 2, 3], "low": [0, 1, 2], "high": [2, 3, 4]}
        for number, name in enumerate("abcd")
    }
    figure = lab.plot_curves(curves, "step", "loss", "Title", reference=("level", 1.5), ylim=(0, 5))
    axes = figure.figure.axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines[:4]}) == 4
    assert axes.get_ylim() == (0, 5)
    assert len(axes.collections) == 4
    assert figure.alt.startswith("Line chart of loss over step, 1 to 3: a goes from 0 to 3; b goes from 1 to 3")
    with pytest.raises(ValueError, match="at most 4 curves, got 5"):
        lab.plot_curves({**curves, "e": curves["a"]}, "x", "y", "Title")


# ------------------------------------------------------------------------------------------------------------ panel

PICKS = list(UNITS)


SETTINGS = [  # every gate and every choice of units, at both ends of the slider, over a short and a long text
    *(("lstm", gate, units, count, TEXT) for gate, units, count in zip("ifgoch", 2 * PICKS, (2, 40) * 3, strict=True)),
    *(("gru", gate, units, 12, "a") for gate, units in zip("rzn", PICKS, strict=True)),
    ("gru", "h", PICKS[0], 40, "ab\n" * LONGEST),
]


@pytest.mark.parametrize(("name", "gate", "units", "count", "text"), SETTINGS)
def test_the_panel_draws_what_the_functions_do(name, gate, units, count, text):
    generator = made(name)
    panel = lab.GatesPanel(generator, "abc")
    for control, value in {"text": text, "gate": gate, "units": units, "count": count}.items():
        panel.controls[control].value = value
    values = gates.read_gates(generator, text[:LONGEST])[gate]
    chosen = panel.chosen_units(values)
    assert len(set(chosen)) == min(count, 6)
    assert panel.image.value.startswith(
        lab.plot_gates(text[:LONGEST], values, gate, chosen).to_html(folded=False).partition("</p>")[0]
    )
    assert ("Only the first" in panel.image.value) == (len(text) > LONGEST)
    for control_name, control in panel.controls.items():
        assert f"t-{control_name}" in control._dom_classes
        assert control.description


@pytest.mark.parametrize(("text", "sentence"), [("", "at least one character"), ("aZ", "got &#x27;Z&#x27; (U+005A)")])
def test_what_cannot_be_drawn_is_a_sentence(text, sentence):
    panel = lab.GatesPanel(made("lstm"), "abc")
    panel.controls["text"].value = text
    assert 'role="alert"' in panel.words.value
    assert sentence in panel.words.value
    assert panel.image.layout.display == "none"  # no figure of another text beside it
    panel.controls["text"].value = "a"
    assert "alert" not in panel.words.value
    assert panel.image.layout.display is None
