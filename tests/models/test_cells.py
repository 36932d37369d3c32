import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from charrnn.models.cells import gru_cell, layer_norm_lstm_cell, lstm_cell, normalise, rnn_cell, unroll

CELLS = {nn.RNN: rnn_cell, nn.GRU: gru_cell, nn.LSTM: lstm_cell}
sizes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))  # B, T, I, H
kinds = st.sampled_from(list(CELLS))


def make(kind, size, seed):
    """A layer of torch's, inputs, and an initial state, in float64, all asking for their gradients."""
    torch.manual_seed(seed)
    batch, length, width, hidden = size
    layer = kind(width, hidden, batch_first=True, dtype=torch.float64)
    inputs = torch.randn(batch, length, width, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(batch, hidden, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return layer, inputs, tuple(states) if kind is nn.LSTM else states[0]


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


def all_of(outputs, state, leaves):
    """Outputs, final state and the gradient of a weighted sum of both with respect to every leaf."""
    total = sum(
        (tensor * torch.arange(1.0, tensor.numel() + 1).view_as(tensor)).sum() for tensor in [outputs, *parts(state)]
    )
    return [outputs, *parts(state), *torch.autograd.grad(total, leaves)]


@given(kinds, sizes, st.integers(0, 9))
def test_a_cell_unrolled_is_torchs_layer_gradients_and_all(kind, size, seed):
    layer, inputs, state = make(kind, size, seed)
    leaves = [inputs, *parts(state), *layer.parameters()]
    mine = all_of(*unroll(CELLS[kind], inputs, state, *layer.parameters()), leaves)
    initial = tuple(h.unsqueeze(0) for h in state) if kind is nn.LSTM else state.unsqueeze(0)
    outputs, final = layer(inputs, initial)
    final = tuple(h[0] for h in final) if kind is nn.LSTM else final[0]
    for ours, theirs in zip(mine, all_of(outputs, final, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def layer_norm_weights(width, hidden, seed=0):
    torch.manual_seed(seed)
    shapes = [(4 * hidden, width), (4 * hidden, hidden), *[(4 * hidden,)] * 3, (hidden,), (hidden,)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@given(st.sampled_from([*CELLS.values(), layer_norm_lstm_cell]), sizes, st.integers(1, 5), st.integers(0, 9))
def test_chunks_with_the_state_carried_equal_the_whole(cell, size, cut, seed):
    if cell is layer_norm_lstm_cell:
        _, inputs, state = make(nn.LSTM, size, seed)
        weights = layer_norm_weights(size[2], size[3], seed)
    else:
        layer, inputs, state = make(next(kind for kind, own in CELLS.items() if own is cell), size, seed)
        weights = list(layer.parameters())
    whole, final = unroll(cell, inputs, state, *weights)
    outputs = []
    for chunk in inputs.split(cut, dim=1):
        part, state = unroll(cell, chunk, state, *weights)
        outputs.append(part)
    assert torch.equal(torch.cat(outputs, dim=1), whole)
    assert all(map(torch.equal, parts(state), parts(final)))


def test_normalised_rows_have_mean_0_and_variance_1():
    x = torch.randn(5, 40, dtype=torch.float64) * 7 + 3
    rows = normalise(x)
    torch.testing.assert_close(rows.mean(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0)


def test_layer_norm_is_that_of_the_paper_written_out():
    weight_ih, weight_hh, bias, gain_ih, gain_hh, gain_c, bias_c = layer_norm_weights(3, 2)
    x, h, c = (torch.randn(1, n, dtype=torch.float64) for n in (3, 2, 2))

    def ln(row):
        return (row - row.mean()) / torch.sqrt(((row - row.mean()) ** 2).mean() + 1e-5)

    a = ln(weight_hh @ h[0]) * gain_hh + ln(weight_ih @ x[0]) * gain_ih + bias
    i, f, g, o = a.sigmoid()[:2], a.sigmoid()[2:4], a.tanh()[4:6], a.sigmoid()[6:]
    new_c = f * c[0] + i * g
    new_h = o * torch.tanh(ln(new_c) * gain_c + bias_c)
    mine = layer_norm_lstm_cell(x, (h, c), weight_ih, weight_hh, bias, gain_ih, gain_hh, gain_c, bias_c)
    torch.testing.assert_close(mine, (new_h.unsqueeze(0), new_c.unsqueeze(0)))


def test_layer_norm_does_not_care_how_large_its_weights_are():
    weights = layer_norm_weights(3, 4)
    x, state = torch.randn(2, 3, dtype=torch.float64), tuple(torch.randn(2, 2, 4, dtype=torch.float64))
    larger = [weights[0] * 1e3, weights[1] * 1e3, *weights[2:]]
    torch.testing.assert_close(
        layer_norm_lstm_cell(x, state, *larger), layer_norm_lstm_cell(x, state, *weights), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("cell", [rnn_cell, gru_cell, lstm_cell, layer_norm_lstm_cell])
def test_gradients_are_those_of_finite_differences(cell):
    kind = {rnn_cell: nn.RNN, gru_cell: nn.GRU}.get(cell, nn.LSTM)
    layer, inputs, state = make(kind, (2, 3, 3, 2), 0)
    weights = layer_norm_weights(3, 2) if cell is layer_norm_lstm_cell else list(layer.parameters())
    width = len(parts(state))

    def run(inputs, *rest):
        outputs, final = unroll(cell, inputs, rest[:width] if width > 1 else rest[0], *rest[width:])
        return outputs, *parts(final)

    assert torch.autograd.gradcheck(run, (inputs, *parts(state), *weights))
