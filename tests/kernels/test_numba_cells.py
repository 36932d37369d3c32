"""Compiled = readable: outputs, final states and every gradient, to what fp32 holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn.config import ModelConfig
from charrnn.models.build import build_model
from charrnn.models.cells import lstm_cell, unroll
from charrnn.models.state import detach_state
from tests.kernels.test_fused import assert_equal, everything, make, parts

compiled = pytest.importorskip("charrnn.kernels.numba_cells", reason="numba is not installed", exc_type=ImportError)
sizes = st.tuples(*[st.integers(1, 9)] * 4)  # B, T, I, H


def unrolled(inputs, state, *weights):
    return unroll(lstm_cell, inputs, state, *weights)


@given(sizes, st.integers(0, 99))
@settings(max_examples=30)
def test_compiled_is_the_cell_unrolled(size, seed):
    inputs, state, weights = make(lstm_cell, size, seed, torch.float32)
    leaves = [inputs, *parts(state), *weights]
    mine = everything(*compiled.lstm(inputs, state, *weights), leaves)
    assert_equal(mine, everything(*unrolled(inputs, state, *weights), leaves), 1e-5)


@pytest.mark.parametrize("vocab_size", [3, 600])  # summed by a product, and one by one
def test_a_token_looks_its_product_up(vocab_size):
    _, state, weights = make(lstm_cell, (4, 6, 5, 7), 0, torch.float32)
    table = torch.randn(vocab_size, 5).requires_grad_()
    tokens = torch.randint(vocab_size, (4, 6))
    leaves = [table, *parts(state), *weights]
    mine = everything(*compiled.lstm(table, state, *weights, tokens=tokens), leaves)
    assert_equal(mine, everything(*unrolled(table[tokens], state, *weights), leaves), 1e-5)


@pytest.mark.parametrize("token", [-1, 5, 99])
def test_a_token_out_of_range_raises(token):
    model = build_model(ModelConfig(hidden_size=4, num_layers=1), 5)
    model.backend = "numba"
    tokens = torch.tensor([[1, 2, 3, 4, 0], [0, 1, 2, 3, token]])
    with pytest.raises(IndexError, match="expected tokens from 0 to 4"):
        model(tokens)


def test_large_products_are_held_at_the_ends_of_the_exponential():
    inputs, state, weights = make(lstm_cell, (2, 3, 4, 5), 0, torch.float32)
    inputs = (inputs.detach() * 1e4).requires_grad_()
    leaves = [inputs, *parts(state), *weights]
    mine = everything(*compiled.lstm(inputs, state, *weights), leaves)
    assert all(x.isfinite().all() for x in mine)
    assert_equal(mine, everything(*unrolled(inputs, state, *weights), leaves), 1e-4)


def test_chunks_equal_the_whole():
    inputs, state, weights = make(lstm_cell, (3, 12, 4, 6), 0, torch.float32)
    whole, final = compiled.lstm(inputs, state, *weights)
    seen = []
    for chunk in inputs.split([5, 1, 6], dim=1):
        part, state = compiled.lstm(chunk, state, *weights)
        seen.append(part)
    assert_equal([torch.cat(seen, dim=1), *final], [whole, *state], 1e-6)
    for part in final:  # which does not hold on to the whole sequence
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_under_autocast_products_are_bf16_and_nothing_else():
    """Within 4% of the largest entry, and not 0: half precision is really used; the cell's state keeps fp32."""
    inputs, state, weights = make(lstm_cell, (8, 20, 16, 32), 0, torch.float32)
    weights = [(weight.detach() / 4).requires_grad_() for weight in weights]
    leaves = [inputs, *parts(state), *weights]
    exact = everything(*unrolled(inputs, state, *weights), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, final = compiled.lstm(inputs, state, *weights)
    assert outputs.dtype is torch.bfloat16
    assert all(part.dtype is torch.float32 for part in final)
    for mine, theirs in zip(everything(outputs, final, leaves), exact, strict=True):
        error = (mine - theirs).abs().max() / theirs.abs().max()
        assert 0 < error < 0.04


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "residual": True}, {"input_dropout": 0.3, "dropout": 0.2}])
def test_a_model_learns_the_same_on_it(options):
    model = build_model(ModelConfig(hidden_size=16, **{"num_layers": 1, "dropout": 0.0, **options}), 11).train()
    tokens = torch.randint(11, (4, 13), generator=torch.Generator().manual_seed(0))
    found = {}
    for backend in ("reference", "numba"):
        model.backend, state, total = backend, None, 0
        torch.manual_seed(1)
        for chunk in tokens.split([6, 7], dim=1):
            logits, state = model(chunk, state)
            state = detach_state(state)
            total = total + (logits * torch.linspace(-1, 1, 11)).sum()
        found[backend] = [logits, *torch.autograd.grad(total, list(model.parameters()))]
    assert_equal(found["numba"], found["reference"], 1e-5)


def test_without_gradients_it_is_torchs_own():
    model = build_model(ModelConfig(hidden_size=16, num_layers=1, dropout=0.0), 11)
    tokens = torch.randint(11, (2, 9))
    with torch.no_grad():
        expected, _ = model(tokens)
        model.backend = "numba"
        assert torch.equal(model(tokens)[0], expected)


def test_where_it_cannot_run_it_is_not_offered(monkeypatch):
    model = build_model(ModelConfig(hidden_size=4, num_layers=1, dropout=0.0), 5)
    assert "numba" in model.backends
    assert "numba" not in model.double().backends
    assert "numba" not in build_model(ModelConfig(type="gru"), 5).backends
    assert "numba" not in build_model(ModelConfig(layer_norm=True), 5).backends
    monkeypatch.setattr("charrnn.models.recurrent.numba_available", lambda: False)
    assert "numba" not in model.float().backends
