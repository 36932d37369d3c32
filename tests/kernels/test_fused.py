"""Reference = fused = torch: outputs, final states and every gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.kernels.fused import SMALL
from charrnn.models.build import MODELS
from charrnn.models.cells import gru_cell, layer_norm_lstm_cell, lstm_cell, rnn_cell, unroll
from charrnn.models.recurrent import FUSED
from charrnn.models.state import detach_state

GATES = {rnn_cell: 1, gru_cell: 3, lstm_cell: 4, layer_norm_lstm_cell: 4}
cells = st.sampled_from(list(GATES))
sizes = st.tuples(*[st.integers(1, 6)] * 4)  # B, T, I, H


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


def make(cell, size, seed=0, dtype=torch.float64):
    """Inputs, a state and weights for a cell, all asking for their gradients."""
    batch, steps, width, hidden = size
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=dtype).requires_grad_()

    gated = (GATES[cell] * hidden,)
    vectors = [gated, gated]
    if cell is layer_norm_lstm_cell:
        vectors += [gated, (hidden,), (hidden,)]
    weights = [normal(*gated, width), normal(*gated, hidden), *(normal(*shape) for shape in vectors)]
    h, c = normal(batch, hidden), normal(batch, hidden)
    return normal(batch, steps, width), h if cell in (rnn_cell, gru_cell) else (h, c), weights


def everything(outputs, state, leaves):
    """Outputs, final states and the gradients of a sum that weighs each number differently."""
    found = [outputs, *parts(state)]
    total = sum((x * torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in found)
    return [*found, *torch.autograd.grad(total, leaves)]


def assert_equal(mine, theirs, rtol=1e-10):
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(1.0, b.abs().max().item()))


@given(cells, sizes, st.integers(0, 99))
def test_fused_is_the_cell_unrolled(cell, size, seed):
    inputs, state, weights = make(cell, size, seed)
    leaves = [inputs, *parts(state), *weights]
    mine = everything(*FUSED[cell](inputs, state, *weights), leaves)
    assert_equal(mine, everything(*unroll(cell, inputs, state, *weights), leaves))


@given(cells, sizes, st.integers(1, 9), st.integers(0, 99))
def test_products_that_are_looked_up_are_those_of_the_rows(cell, size, vocab_size, seed):
    (batch, steps, _, _), (inputs, state, weights) = size, make(cell, size, seed)
    table = inputs.detach().flatten(0, 1)[:1].repeat(vocab_size, 1).cumsum(0).requires_grad_()
    tokens = torch.randint(vocab_size, (batch, steps), generator=torch.Generator().manual_seed(seed))
    leaves = [table, *parts(state), *weights]
    mine = everything(*FUSED[cell](table, state, *weights, tokens=tokens), leaves)
    assert_equal(mine, everything(*unroll(cell, table[tokens], state, *weights), leaves))


@given(cells, sizes, st.integers(1, 5))
def test_chunks_with_the_state_carried_equal_the_whole(cell, size, cut):
    inputs, state, weights = make(cell, size)
    whole, final = FUSED[cell](inputs, state, *weights)
    outputs = []
    for chunk in inputs.split(cut, dim=1):
        part, state = FUSED[cell](chunk, state, *weights)
        outputs.append(part)
    assert_equal([torch.cat(outputs, dim=1), *parts(state)], [whole, *parts(final)], rtol=1e-12)


@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__)
def test_gradients_are_those_of_finite_differences(cell):
    inputs, state, weights = make(cell, (2, 3, 3, 2))

    def run(inputs, *rest):
        state = rest[: len(parts(state_of))]
        outputs, final = FUSED[cell](inputs, state if len(state) > 1 else state[0], *rest[len(state) :])
        return outputs, *parts(final)

    state_of = state
    assert torch.autograd.gradcheck(run, (inputs, *parts(state), *weights))


@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__)
def test_backward_can_be_played_twice_but_not_differentiated(cell):
    inputs, state, weights = make(cell, (2, 3, 3, 2))
    outputs, _ = FUSED[cell](inputs, state, *weights)
    first = torch.autograd.grad(outputs.sum(), weights, retain_graph=True)
    assert_equal(torch.autograd.grad(outputs.sum(), weights, retain_graph=True), first, rtol=0)
    (slope,) = torch.autograd.grad(outputs.sum(), weights[1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice|does not require grad"):
        slope.sum().backward()


@pytest.mark.parametrize("hidden", [24, SMALL])
@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__)
def test_bf16_and_fp32_are_within_their_bounds(cell, hidden):
    """Relative to the largest entry of each tensor: 1e-4 in fp32; in bf16, whose rounding is 2^-9, 4%, and not 0."""
    exact = make(cell, (5, 12, 7, hidden))
    scaled = [exact[0], exact[1], [w / hidden**0.5 if w.dim() == 2 else w for w in exact[2]]]
    leaves = [scaled[0], *parts(scaled[1]), *scaled[2]]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    states = len(parts(exact[1]))
    for bf16, bound in ((False, 1e-4), (True, 0.04)):
        single = [leaf.detach().float().requires_grad_() for leaf in leaves]
        found = []
        for inputs, *rest in (leaves, single):
            state = tuple(rest[:states]) if states > 1 else rest[0]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and inputs is single[0]):
                outputs, final = FUSED[cell](inputs, state, *rest[states:])
            assert outputs.dtype == inputs.dtype
            found.append(everything(outputs, final, [inputs, *rest]))
        for a, b in zip(found[1], found[0], strict=True):
            assert (a.double() - b).abs().max() <= bound * b.abs().max() + 1e-6
        if cell is gru_cell and bf16:  # what r lets through has a bias whose gradient is summed in fp32
            d_bias = found[1][-1][-hidden:]
            assert not torch.equal(d_bias, d_bias.bfloat16().float())
        off = max((a.double() - b).abs().max() / b.abs().max() for a, b in zip(found[1], found[0], strict=True))
        assert (off > 1e-3) == bf16


@pytest.mark.parametrize("cell", [rnn_cell, lstm_cell], ids=lambda cell: cell.__name__)
def test_a_state_in_half_precision_is_gone_on_from_in_full(cell):
    """Torch's layers leave one behind under autocast."""
    inputs, state, weights = make(cell, (3, 5, 4, 6), dtype=torch.float32)
    rounded = tuple(h.bfloat16() for h in parts(state))
    rounded = rounded if len(rounded) > 1 else rounded[0]
    outputs, final = FUSED[cell](inputs, rounded, *weights)
    assert {x.dtype for x in [outputs, *parts(final)]} == {torch.float32}


@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__)
def test_the_gradients_that_come_in_are_left_as_they_are(cell):
    inputs, state, weights = make(cell, (2, 3, 3, 2))
    outputs, final = FUSED[cell](inputs, state, *weights)
    coming = [torch.randn_like(x) for x in [outputs, *parts(final)]]
    kept = [x.clone() for x in coming]
    torch.autograd.backward([outputs, *parts(final)], coming)
    assert all(map(torch.equal, coming, kept))


@pytest.mark.parametrize("cell", GATES, ids=lambda cell: cell.__name__)
def test_a_final_state_does_not_hold_on_to_the_sequence(cell):
    inputs, state, weights = make(cell, (2, 50, 3, 4))
    for part in parts(FUSED[cell](inputs, state, *weights)[1]):
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


# ------------------------------------------------------------------------------------------------------- in a model

options = st.fixed_dictionaries(
    {
        "num_layers": st.integers(1, 3),
        "embedding_dim": st.sampled_from([None, 3]),
        "residual": st.booleans(),
        "init": st.sampled_from(["torch", "uniform", "orthogonal"]),
    }
)


@given(st.sampled_from([*MODELS, "layer norm"]), options, st.booleans(), st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=60)
def test_backends_of_a_model_give_the_same_numbers(kind, options, with_state, steps, seed):
    torch.manual_seed(seed)
    kind, extra = ("lstm", {"layer_norm": True}) if kind == "layer norm" else (kind, {})
    model = MODELS[kind](7, 5, **options, **extra).double()
    tokens = torch.randint(7, (3, steps))
    state = detach_state(model(tokens)[1]) if with_state else None
    found = []
    for backend in model.backends:
        model.backend = backend
        logits, final = model(tokens, state)
        flat = torch.cat([x if isinstance(x, torch.Tensor) else torch.cat(x) for x in final])
        found.append(everything(logits, flat, list(model.parameters())))
    for one, other in itertools.pairwise(found):
        assert_equal(one, other)


@pytest.mark.parametrize("kind", MODELS)
def test_products_are_looked_up_where_rows_are_fewer_than_places(kind, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[kind](40, 5, embedding_dim=3, input_dropout=0.5).double().eval()
    model.backend = "fused"
    looked_up = []
    kernel = FUSED[model.cell]

    def spy(*arguments, tokens=None):
        looked_up.append(tokens is not None)
        return kernel(*arguments, tokens=tokens)

    monkeypatch.setitem(FUSED, model.cell, spy)
    tokens = torch.randint(40, (3, 20))
    whole, _ = model(tokens)  # 60 places: by table
    parts = [model(tokens[:, :5])]  # 15 places: by row
    parts.append(model(tokens[:, 5:], parts[0][1]))
    assert looked_up == [True, False, True]
    torch.testing.assert_close(torch.cat([logits for logits, _ in parts], dim=1), whole, rtol=1e-10, atol=1e-10)
    model.train()(tokens)  # with other units dropped at each place, no two rows are the same
    assert looked_up[3:] == [False]


@pytest.mark.parametrize("variational_dropout", [False, True])
@pytest.mark.parametrize("kind", [*MODELS, "layer norm"])
def test_backends_drop_the_same_units(kind, variational_dropout):
    kind, extra = ("lstm", {"layer_norm": True}) if kind == "layer norm" else (kind, {})
    shares = {"dropout": 0.3, "input_dropout": 0.2, "output_dropout": 0.4, "variational_dropout": variational_dropout}
    model = MODELS[kind](7, 5, 2, **shares, **extra).double()
    tokens = torch.randint(7, (3, 9))
    found = []
    for backend in model.backends:
        model.backend = backend
        torch.manual_seed(1)
        logits, _ = model(tokens)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    for one, other in itertools.pairwise(found):
        assert_equal(one, other)


def test_without_gradients_nothing_is_kept_for_them(monkeypatch):
    model = MODELS["gru"](7, 5)
    tokens = torch.randint(7, (3, 9))
    model.backend = "fused"
    expected, _ = model(tokens)
    monkeypatch.setitem(FUSED, gru_cell, None)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], expected)
