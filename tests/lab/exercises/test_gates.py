"""The exercises of notebook 04, answered as learners would."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm as torch_layer_norm

from charrnn.config import ModelConfig
from charrnn.lab.exercises import EXERCISES
from charrnn.models.build import build_model
from charrnn.models.build import count_parameters as counted
from charrnn.models.cells import lstm_cell
from tests.lab.exercises.test_exercises import assert_judged

sigmoid, tanh = torch.sigmoid, torch.tanh

# ------------------------------------------------------------------------------------------------------- lstm_step


def lstm_right(x, h, c, weight, bias):
    a = torch.cat([x, h], dim=1) @ weight.T + bias
    i, f, g, o = a.chunk(4, dim=1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return h, c


def lstm_by_the_library(x, h, c, weight, bias):
    inputs = x.shape[1]
    return list(lstm_cell(x, (h, c), weight[:, :inputs], weight[:, inputs:], bias, torch.zeros_like(bias)))


def lstm_wrong_order(x, h, c, weight, bias):
    i, f, o, g = (torch.cat([x, h], dim=1) @ weight.T + bias).chunk(4, dim=1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def lstm_forgets_the_new(x, h, c, weight, bias):
    i, f, g, o = (torch.cat([x, h], dim=1) @ weight.T + bias).chunk(4, dim=1)
    c = sigmoid(i) * c + sigmoid(f) * tanh(g)
    return sigmoid(o) * tanh(c), c


def lstm_without_tanh(x, h, c, weight, bias):
    i, f, g, o = (torch.cat([x, h], dim=1) @ weight.T + bias).chunk(4, dim=1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * c, c


def lstm_all_sigmoid(x, h, c, weight, bias):
    i, f, g, o = sigmoid(torch.cat([x, h], dim=1) @ weight.T + bias).chunk(4, dim=1)
    c = f * c + i * g
    return o * tanh(c), c


def lstm_squashed_twice(x, h, c, weight, bias):
    i, f, g, o = sigmoid(torch.cat([x, h], dim=1) @ weight.T + bias).chunk(4, dim=1)
    c = f * c + i * tanh(g)
    return o * tanh(c), c


def lstm_h_first(x, h, c, weight, bias):
    i, f, g, o = (torch.cat([h, x], dim=1) @ weight.T + bias).chunk(4, dim=1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def lstm_swapped_results(x, h, c, weight, bias):
    h, c = lstm_right(x, h, c, weight, bias)
    return c, h


def lstm_stacked_results(x, h, c, weight, bias):
    return torch.stack(lstm_right(x, h, c, weight, bias), dim=0)


# -------------------------------------------------------------------------------------------------------- gru_step


def gru_parts(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    return *(x @ weight_ih.T + bias_ih).chunk(3, 1), *(h @ weight_hh.T + bias_hh).chunk(3, 1)


def gru_right(*arguments):
    r_x, z_x, n_x, r_h, z_h, n_h = gru_parts(*arguments)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = tanh(n_x + r * n_h)
    return n + z * (arguments[1] - n)


def gru_torch(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    return torch.gru_cell(x, h, weight_ih, weight_hh, bias_ih, bias_hh)


def gru_swapped_z(*arguments):
    r_x, z_x, n_x, r_h, z_h, n_h = gru_parts(*arguments)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = tanh(n_x + r * n_h)
    return (1 - z) * arguments[1] + z * n


def gru_of_the_paper(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    r_x, z_x, n_x, r_h, z_h, _ = gru_parts(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = tanh(n_x + (r * h) @ weight_hh.chunk(3)[2].T + bias_hh.chunk(3)[2])
    return (1 - z) * n + z * h


def gru_one_bias(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    r_x, z_x, n_x = (x @ weight_ih.T + bias_ih + bias_hh).chunk(3, 1)
    r_h, z_h, n_h = (h @ weight_hh.T).chunk(3, 1)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    return (1 - z) * tanh(n_x + r * n_h) + z * h


def gru_without_reset(x, h, weight_ih, weight_hh, bias_ih, bias_hh):
    a = x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh
    _, z, n = a.chunk(3, 1)
    z = sigmoid(z)
    return (1 - z) * tanh(n) + z * h


def gru_sigmoid_candidate(*arguments):
    r_x, z_x, n_x, r_h, z_h, n_h = gru_parts(*arguments)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    return (1 - z) * sigmoid(n_x + r * n_h) + z * arguments[1]


def gru_z_first(*arguments):
    z_x, r_x, n_x, z_h, r_h, n_h = gru_parts(*arguments)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    return (1 - z) * tanh(n_x + r * n_h) + z * arguments[1]


# ------------------------------------------------------------------------------------------------- count_parameters


def count(kind, V, E, H, L, G=None, biases=2):  # noqa: N803
    G = G or {"rnn": 1, "gru": 3, "lstm": 4}[kind]  # noqa: N806
    first = G * H * (E + H + biases)
    return V * E + first + (L - 1) * G * H * (H + H + biases) + H * V + V


def count_no_inputs(kind, V, E, H, L):  # noqa: N803
    G = {"rnn": 1, "gru": 3, "lstm": 4}[kind]  # noqa: N806
    return V * E + L * (G * H * H + 2 * G * H) + V * H + V


def count_same_width(kind, V, E, H, L):  # noqa: N803
    G = {"rnn": 1, "gru": 3, "lstm": 4}[kind]  # noqa: N806
    return V * E + L * G * H * (E + H + 2) + V * H + V


def count_one_recurrent(kind, V, E, H, L):  # noqa: N803
    G = {"rnn": 1, "gru": 3, "lstm": 4}[kind]  # noqa: N806
    return V * E + sum(G * H * (H if i else E) + H * H + 2 * G * H for i in range(L)) + V * H + V


# ------------------------------------------------------------------------------------------------------- layer_norm


def norm_right(x, gain, bias, eps):
    x = x - x.mean(dim=1, keepdim=True)
    return x / ((x**2).mean(dim=1, keepdim=True) + eps) ** 0.5 * gain + bias


def norm_over_batch(x, gain, bias, eps):
    return (x - x.mean(0)) / (x.var(0, correction=0) + eps).sqrt() * gain + bias


def norm_over_all(x, gain, bias, eps):
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * gain + bias


def norm_unbiased(x, gain, bias, eps):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + eps).sqrt() * gain + bias


def norm_eps_outside(x, gain, bias, eps):
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, correction=0) + eps) * gain + bias


def norm_no_root(x, gain, bias, eps):
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + eps) * gain + bias


def norm_gain_first(x, gain, bias, eps):
    return torch_layer_norm(gain * x, x.shape[1:], eps=eps) + bias


ANSWERS = {
    "lstm_step": (
        [lstm_right, lstm_by_the_library],
        [
            lstm_wrong_order,
            lstm_forgets_the_new,
            lstm_without_tanh,
            lstm_all_sigmoid,
            lstm_squashed_twice,
            lstm_h_first,
            lstm_swapped_results,
            lstm_stacked_results,
        ],
    ),
    "gru_step": (
        [gru_right, gru_torch],
        [gru_swapped_z, gru_of_the_paper, gru_one_bias, gru_without_reset, gru_sigmoid_candidate, gru_z_first],
    ),
    "count_parameters": (
        [count],
        [
            lambda *a: count(*a, biases=1),
            count_no_inputs,
            count_same_width,
            count_one_recurrent,
            lambda *a: count(*a, G=3 if a[0] == "lstm" else None),
            lambda kind, V, E, H, L: count(kind, V, E, H, L) - V * E - V,  # noqa: N803
        ],
    ),
    "layer_norm": (
        [norm_right, lambda x, gain, bias, eps: torch_layer_norm(x, gain.shape, gain, bias, eps)],
        [norm_over_batch, norm_over_all, norm_unbiased, norm_eps_outside, norm_no_root, norm_gain_first],
    ),
    "bias_for": (
        [lambda steps: -math.log(2 ** (1 / steps) - 1)],
        [
            lambda steps: math.exp(-math.log(2) / steps),
            lambda steps: torch.logit(torch.tensor(-1 / steps).double().exp()).item(),
            lambda steps: math.log(2 ** (1 / steps) - 1),
            lambda steps: math.log(2 * steps - 1),
        ],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_mistake_gets_its_own_hint(name):
    right, wrong = ANSWERS[name]
    assert_judged(name, right, wrong)


@pytest.mark.parametrize("case", EXERCISES["count_parameters"].cases())
def test_the_formula_counts_what_the_model_has(case):
    kind, vocab_size, embedding_dim, hidden_size, num_layers = case
    config = ModelConfig(type=kind, embedding_dim=embedding_dim, hidden_size=hidden_size, num_layers=num_layers)
    assert EXERCISES["count_parameters"].solution(*case) == counted(build_model(config, vocab_size))


def test_the_bias_does_what_it_promises():
    bias = torch.tensor(EXERCISES["bias_for"].solution(20), dtype=torch.float64)
    assert torch.sigmoid(bias) ** 20 == pytest.approx(0.5)
