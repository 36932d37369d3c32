import math

import numpy as np
import pytest
import torch

from charrnn import lab
from charrnn.lab.probes.gradients import MATRICES, RECURRENCES

# -------------------------------------------------------------------------------------------------------- the measure


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("radius", [0.5, 1.0, 1.3])
def test_a_matrix_has_the_spectral_radius_that_was_asked_for(kind, radius):
    matrix = lab.recurrent_matrix(kind, 12, radius, seed=3)
    assert torch.linalg.eigvals(matrix).abs().max().item() == pytest.approx(radius)
    assert torch.equal(matrix, lab.recurrent_matrix(kind, 12, radius, seed=3))
    assert not torch.allclose(matrix, lab.recurrent_matrix(kind, 12, radius, seed=4))
    product = matrix.T @ matrix
    keeps_lengths = torch.allclose(product, radius**2 * torch.eye(12, dtype=torch.float64))
    assert keeps_lengths == (kind == "orthogonal")


def test_a_scale_of_nothing_is_no_network():
    assert not lab.recurrent_matrix("gaussian", 5, 0.0, seed=0).any()


@pytest.mark.parametrize("radius", [0.8, 0.9, 0.95, 1.05, 1.1, 1.2])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_log_slope_of_a_linear_orthogonal_network_is_log_radius_within_a_percent(radius, seed):
    norms = lab.gradient_norms(lab.recurrent_matrix("orthogonal", 64, radius, seed), 50, seed=seed)
    assert lab.log_slope(norms) == pytest.approx(math.log(radius), rel=0.01)


def test_at_radius_1_a_linear_orthogonal_network_keeps_its_gradient():
    norms = lab.gradient_norms(lab.recurrent_matrix("orthogonal", 16, 1.0, seed=0), 100)
    assert norms.numpy() == pytest.approx(np.ones(101))


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_gradient_norms_are_those_of_the_jacobian(recurrence):
    weight, lags, seed = lab.recurrent_matrix("gaussian", 6, 1.1, seed=1), 7, 5
    generator = torch.Generator().manual_seed(seed)
    inputs = 0.1 * torch.randn(lags + 1, 6, generator=generator, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
    states = [inputs[0]]
    for x in inputs[1:]:
        h = weight @ states[-1] + x
        states.append(h.tanh() if recurrence == "tanh" else h)
    expected = [direction]
    for h in reversed(states[1:]):
        slope = 1 - h**2 if recurrence == "tanh" else torch.ones_like(h)
        expected.append(expected[-1] @ (torch.diag(slope) @ weight))
    norms = lab.gradient_norms(weight, lags, recurrence, seed)
    assert torch.allclose(norms, torch.stack([gradient.norm() for gradient in expected]))


@pytest.mark.parametrize("radius", [0.8, 1.0, 1.2])
def test_tanh_only_ever_shortens_where_all_directions_are_stretched_alike(radius):
    weight = lab.recurrent_matrix("orthogonal", 32, radius, seed=0)
    assert (lab.gradient_norms(weight, 40, "tanh")[1:] < lab.gradient_norms(weight, 40)[1:]).all()


def test_a_wrong_word_names_the_right_ones():
    with pytest.raises(ValueError, match="kind: expected one of orthogonal, gaussian, got 'cauchy'"):
        lab.recurrent_matrix("cauchy", 4, 1.0, 0)
    with pytest.raises(ValueError, match="recurrence: expected one of linear, tanh, got 'relu'"):
        lab.gradient_norms(torch.eye(2), 3, "relu")


def test_the_slope_of_a_power():
    assert lab.log_slope([5 * 0.7**k for k in range(9)]) == pytest.approx(math.log(0.7))


# -------------------------------------------------------------------------------------------------------- the figures


def test_norms_are_drawn_on_a_logarithmic_axis_beside_the_power():
    figure = lab.plot_norms({"mine": [1.0, 0.5, 0.25]}, "Title", radius=0.9)
    axes = figure.figure.axes[0]
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_ydata().tolist() == [1.0, 0.5, 0.25]
    assert axes.lines[1].get_xydata().tolist() == [[0, 1.0], [2, pytest.approx(0.81)]]
    assert axes.lines[0].get_linewidth() != axes.lines[1].get_linewidth()  # told apart without colour
    assert "slope ln 0.90 = -0.105" in figure.alt
    assert "mine goes from 1 to 0.25" in figure.alt


def test_the_cliff_is_between_two_places_where_the_unit_settles():
    weight = torch.tensor([1.5, 1.5], dtype=torch.float64)
    above, below = lab.cliff_loss(weight, torch.tensor([0.0, -0.3], dtype=torch.float64)).tolist()
    assert above > 1 > 0.3 > below
    assert lab.cliff_loss(torch.tensor(0.0), torch.tensor(math.atanh(-0.5))).item() == pytest.approx(0, abs=1e-10)


def test_descents_are_drawn_as_they_were():
    paths = {"free": [(1.5, 0.0), (-1.0, -5.0)], "clipped": [(1.5, 0.0), (1.4, -0.1), (1.0, 0.0)]}
    figure = lab.plot_descents(paths)
    lines = {line.get_label(): line for line in figure.figure.axes[0].lines}
    assert lines["clipped"].get_xydata().tolist() == [list(point) for point in paths["clipped"]]
    assert lines["free"].get_linestyle() != lines["clipped"].get_linestyle()
    assert "free it goes from (1.50, 0.00) to (-1.00, -5.00)" in figure.alt
    assert figure.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(("radius", "seed"), [(0.8, 0), (1.2, 20)])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_the_sliders_draw_what_the_functions_do(radius, matrix, recurrence, seed):
    panel = lab.GradientsPanel()
    values = {"radius": radius, "matrix": matrix, "recurrence": recurrence, "seed": seed}
    for name, value in values.items():
        panel.controls[name].value = value
    figure = lab.plot_radius(**values)
    assert panel.image.value == figure.to_html(folded=False)
    for name, control in panel.controls.items():
        assert f"t-{name}" in control._dom_classes
