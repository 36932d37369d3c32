import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

from charrnn.config import ModelConfig
from charrnn.models.build import MODELS, build_model, count_parameters, with_vocabulary
from charrnn.models.cells import gru_cell, lstm_cell, rnn_cell
from charrnn.models.recurrent import CharGRU, CharLSTM, CharRNN, evaluation_view
from charrnn.models.state import detach_state, flatten_state, map_state, unflatten_state

KINDS = list(MODELS)
CELL_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def make(kind, **options):
    options = {"vocab_size": 7, "hidden_size": 5, "num_layers": 2} | options
    torch.manual_seed(0)
    return MODELS[kind](**options).double().eval()


def test_parameters_of_the_default_network():
    assert count_parameters(CharLSTM(65, 128, 2)) == 244_546


@pytest.mark.parametrize(("model", "gates"), [(CharRNN, 1), (CharGRU, 3), (CharLSTM, 4)])
def test_parameters_by_formula(model, gates):
    V, H, E = 11, 6, 4  # noqa: N806
    layers = gates * (H * E + H * H + 2 * H) + gates * (H * H + H * H + 2 * H)
    assert count_parameters(model(V, H, 2, embedding_dim=E)) == V * E + layers + H * V + V


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(1, 11), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_chunks_with_carried_state_equal_the_whole(kind, cuts, seed):
    model = make(kind)
    tokens = torch.randint(7, (3, 12), generator=torch.Generator().manual_seed(seed))
    whole, last = model(tokens)
    borders = [0, *sorted(set(cuts)), 12]
    parts, state = [], None
    for start, end in itertools.pairwise(borders):
        logits, state = model(tokens[:, start:end], state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(flatten_state(state), flatten_state(last), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_streams_do_not_see_each_other(kind):
    model = make(kind)
    tokens = torch.randint(7, (3, 9))
    together, _ = model(tokens)
    for b in range(3):
        torch.testing.assert_close(model(tokens[b : b + 1])[0], together[b : b + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_sees_a_later_token(kind):
    model = make(kind)
    tokens = torch.randint(7, (1, 9))
    other = tokens.clone()
    other[0, 5] = (tokens[0, 5] + 1) % 7
    first, second = model(tokens)[0], model(other)[0]
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.equal(first[:, 5:], second[:, 5:])


@pytest.mark.parametrize("kind", KINDS)
def test_state_has_the_streams_first(kind):
    _, state = make(kind)(torch.zeros(3, 2, dtype=torch.int64))
    assert len(state) == 2
    assert all(tensor.shape == (3, 5) for tensor in flatten_state(state).values())


def test_the_embedding_starts_as_one_hot():
    assert torch.equal(CharLSTM(7, 5).embedding.weight, torch.eye(7))
    assert CharLSTM(7, 5, embedding_dim=3).embedding.weight.shape == (7, 3)


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 2.5])
def test_forget_gates_start_at_the_bias_in_total(forget_bias):
    for layer in CharLSTM(7, 5, 2, forget_bias=forget_bias).layers:
        total = layer.bias_ih_l0 + layer.bias_hh_l0
        assert torch.equal(total[5:10], torch.full((5,), forget_bias))
        assert (total[:5].abs() <= 2 / math.sqrt(5)).all()


def test_forget_gates_start_at_zero_by_default():
    layer = CharLSTM(7, 5).layers[0]
    assert not (layer.bias_ih_l0 + layer.bias_hh_l0)[5:10].any()


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_those_of_torch(kind):
    """Stacked one by one they compute what torch's stack of layers does."""
    model = make(kind, num_layers=3)
    stack = MODELS[kind].layer(7, 5, num_layers=3, batch_first=True).double()
    stack.load_state_dict(
        {
            name.replace("l0", f"l{i}"): p
            for i, layer in enumerate(model.layers)
            for name, p in layer.state_dict().items()
        }
    )
    tokens = torch.randint(7, (2, 6))
    expected = model.head(stack(model.embedding(tokens))[0])
    torch.testing.assert_close(model(tokens)[0], expected, rtol=0, atol=1e-12)


def test_dropout_works_between_layers_while_training_only():
    tokens = torch.randint(7, (2, 6))
    model = make("lstm", dropout=0.5)
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    one_layer = make("lstm", dropout=0.5, num_layers=1).train()
    assert torch.equal(one_layer(tokens)[0], one_layer(tokens)[0])


def test_detached_state_stops_gradients():
    model = make("lstm").train()
    _, state = model(torch.zeros(1, 3, dtype=torch.int64))
    detached = detach_state(state)
    assert not any(tensor.requires_grad for tensor in flatten_state(detached).values())
    torch.testing.assert_close(flatten_state(detached), flatten_state(map_state(torch.clone, state)))


tensors = st.builds(torch.zeros, st.just(1))
states = st.one_of(
    st.none(), st.lists(st.one_of(tensors, st.tuples(tensors, tensors)), min_size=1, max_size=12).map(tuple)
)


@given(states)
def test_flatten_state_round_trip(state):
    back = unflatten_state(flatten_state(state))
    assert repr(back) == repr(state)


@pytest.mark.parametrize(("kind", "kept"), [("rnn", 1), ("gru", 5), ("lstm", 7)])
@pytest.mark.parametrize(("dropout", "dropped"), [(0.0, 0), (0.3, 2)])
def test_the_memory_formula(kind, kept, dropout, dropped):
    """Of the module's docstring: the numbers that autograd keeps for backward, each memory once, without parameters."""
    V, H, L, B, T = 65, 32, 3, 16, 50  # noqa: N806
    model = MODELS[kind](V, H, L, dropout=dropout)
    model.backend = "fused"
    memory = {}

    def keep(tensor):
        memory[tensor.untyped_storage().data_ptr()] = tensor  # which is held, so that no other takes its place
        return tensor

    tokens = torch.randint(V, (B, T))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, _ = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    for parameter in model.parameters():
        memory.pop(parameter.untyped_storage().data_ptr(), None)
    memory.pop(tokens.untyped_storage().data_ptr(), None)
    memory[logits.untyped_storage().data_ptr()] = logits
    found = sum(tensor.untyped_storage().nbytes() for tensor in memory.values()) / 4
    assert found == pytest.approx(B * T * ((L * kept + 1) * H + (L - 1) * dropped * H + 2 * V), rel=0.03)
    loss.backward()
    widths = [V, H, H]
    formula = V * V + sum(CELL_GATES[kind] * H * (width + H + 2) for width in widths) + H * V + V
    assert count_parameters(model) == formula


def test_build_model_is_seeded_and_leaves_the_random_state():
    config = ModelConfig(hidden_size=4)
    before = torch.get_rng_state()
    first, second, other = (build_model(config, 7, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_new_tokens_start_as_the_mean_of_the_old_ones():
    model = CharGRU(5, 4, embedding_dim=3)
    grown = with_vocabulary(model, 7)
    assert with_vocabulary(model, 5) is model
    for name, old in model.state_dict().items():
        new = grown.state_dict()[name]
        torch.testing.assert_close(new[: len(old)], old, rtol=0, atol=0)
        if name.startswith(("embedding", "head")):
            torch.testing.assert_close(new[5:], old.mean(0).expand_as(new[5:]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_knows_its_config(kind):
    config = ModelConfig(type=kind, hidden_size=4, num_layers=3, dropout=0.1, embedding_dim=6)
    assert build_model(config, 7).config == config


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="hidden_size"):
        CharLSTM(7, 0)


@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_lays_its_weights_out_for_cudnn(kind, monkeypatch):
    model = build_model(ModelConfig(type=kind, num_layers=3), 5)
    laid_out = []
    monkeypatch.setattr(torch.nn.RNNBase, "flatten_parameters", lambda layer: laid_out.append(layer))
    copied = copy.deepcopy(model)
    assert laid_out == list(copied.layers)
    copy.deepcopy(build_model(ModelConfig(layer_norm=True), 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_copy_on_cuda_runs_without_a_warning():
    copied = copy.deepcopy(build_model(ModelConfig(hidden_size=16), 5).cuda())
    copied(torch.zeros(2, 3, dtype=torch.int64, device="cuda"))  # cuDNN warns of weights that do not lie together


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_computes_what_the_cpu_does():
    model, tokens = make("lstm").float(), torch.randint(7, (3, 9))
    expected = model(tokens)[0]
    torch.testing.assert_close(model.cuda()(tokens.cuda())[0].cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device on this machine")
def test_mps_computes_what_the_cpu_does():
    model, tokens = make("lstm").float(), torch.randint(7, (3, 9))
    expected = model(tokens)[0]
    torch.testing.assert_close(model.to("mps")(tokens.to("mps"))[0].cpu(), expected, rtol=1e-4, atol=1e-5)


def test_layer_kinds():
    assert {kind: model.layer for kind, model in MODELS.items()} == {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
    cells = {"lstm": lstm_cell, "gru": gru_cell, "rnn": rnn_cell}
    assert {kind: model(5).cell for kind, model in MODELS.items()} == cells


def test_a_large_vocabulary_is_not_one_hot():
    assert CharLSTM(1024, 4).embedding.weight.shape == (1024, 1024)
    assert CharLSTM(1025, 4).embedding.weight.shape == (1025, 4)
    assert CharLSTM(1025, 4, embedding_dim=7).embedding.weight.shape == (1025, 7)


# ---------------------------------------------------------------------------------------------------------- options


def test_layer_norm_is_for_lstms():
    with pytest.raises(ValueError, match="expected layer_norm with type lstm only, got type gru"):
        CharGRU(7, 5, layer_norm=True)
    model = CharLSTM(7, 5, 2, layer_norm=True, forget_bias=1.0)
    assert model.backends == ("fused", "reference")
    for layer in model.layers:
        assert torch.equal(layer.bias_l0[5:10], torch.ones(5))
        assert torch.equal(layer.gain_hh_l0, torch.ones(20))


@pytest.mark.parametrize("width", [7, 3])
def test_parameters_with_layer_norm_by_formula(width):
    V, H = 7, 5  # noqa: N806
    expected = V * width + 4 * H * (width + H) + 3 * 4 * H + 2 * H + V * H + V
    assert count_parameters(CharLSTM(V, H, embedding_dim=width, layer_norm=True)) == expected


def test_a_backend_that_is_not_there_is_refused():
    model = CharLSTM(7, 5, layer_norm=True)
    model.backend = "torch"
    with pytest.raises(ValueError, match="backend: expected fused or reference for this model, got 'torch'"):
        model(torch.zeros(1, 2, dtype=torch.int64))


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="residuals"):
        CharLSTM(7, 5, residuals=True)


def test_tied_weights_are_one():
    model = CharLSTM(7, 5, tie_weights=True)
    assert model.head.weight is model.embedding.weight
    assert count_parameters(model) == count_parameters(CharLSTM(7, 5, embedding_dim=5)) - 7 * 5
    assert model.head.weight.abs().max() <= 1 / math.sqrt(5)  # it starts as a head, not as an embedding
    model(torch.zeros(1, 2, dtype=torch.int64))[0].sum().backward()
    assert model.head.weight.grad is model.embedding.weight.grad
    with pytest.raises(ValueError, match=r"tie_weights with an embedding_dim of hidden_size \(5\) or null, got 6"):
        CharLSTM(7, 5, embedding_dim=6, tie_weights=True)


def test_a_residual_connection_adds_a_layers_input():
    tokens = torch.randint(7, (2, 4))
    plain, residual = make("gru"), make("gru", residual=True)
    torch.nn.init.zeros_(residual.layers[1].weight_ih_l0)
    torch.nn.init.zeros_(residual.layers[1].weight_hh_l0)
    torch.nn.init.zeros_(residual.layers[1].bias_ih_l0)
    torch.nn.init.zeros_(residual.layers[1].bias_hh_l0)  # the second layer is silent: what it adds to is left
    one = make("gru", num_layers=1)
    one.load_state_dict({name: value for name, value in residual.state_dict().items() if "layers.1" not in name})
    assert torch.equal(residual(tokens)[0], one(tokens)[0])
    assert not torch.equal(plain(tokens)[0], one(tokens)[0])


def test_initialisation_of_2015():
    model = CharLSTM(7, 30, embedding_dim=4, init="uniform", forget_bias=0.0)
    values = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert values.abs().max() <= 0.08
    assert values.abs().max() > 0.079
    normalised = CharLSTM(7, 5, layer_norm=True, init="uniform").layers[0]
    assert torch.equal(normalised.gain_c_l0, torch.ones(5))  # 2015 had no layer norm


@pytest.mark.parametrize("init", ["torch", "uniform", "orthogonal"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_initialisation_table(kind, init):
    """Of the module's docstring: the largest number of each tensor is just within its bound."""
    V, H = 50, 64  # noqa: N806
    model = build_model(ModelConfig(type=kind, init=init, hidden_size=H, embedding_dim=40), V)
    torch_bound, xavier = 1 / math.sqrt(H), math.sqrt(6 / (40 + H))
    layer = {"torch": torch_bound, "uniform": 0.08, "orthogonal": xavier}[init]
    bounds = {
        "layers.0.weight_ih_l0": layer,
        "layers.0.bias_ih_l0": 0 if init == "orthogonal" else layer,
        "head.weight": 0.08 if init == "uniform" else torch_bound,
        "head.bias": 0.08 if init == "uniform" else torch_bound,
    }
    if init != "orthogonal":
        bounds["layers.0.weight_hh_l0"] = layer
    weights = model.state_dict()
    for name, bound in bounds.items():
        assert 0.9 * bound <= weights[name].abs().max() <= bound, name
    if init == "uniform":
        assert weights["embedding.weight"].abs().max() <= 0.08
    else:
        assert weights["embedding.weight"].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonal_initialisation(kind):
    layer = MODELS[kind](7, 6, init="orthogonal", forget_bias=0.0).layers[0]
    for gate in layer.weight_hh_l0.split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)
    for gate in layer.weight_ih_l0.split(6):
        assert gate.abs().max() <= math.sqrt(6 / (6 + 7))
    assert not layer.bias_ih_l0.any()


@pytest.mark.parametrize("variational_dropout", [False, True])
def test_dropout_drops_its_share_and_keeps_the_mean(variational_dropout):
    model = MODELS["rnn"](7, 400, variational_dropout=variational_dropout)
    x = torch.ones(3, 10, 400)
    dropped = model._drop(x, 0.25)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    same_at_every_step = (dropped == dropped[:, :1]).all()
    assert same_at_every_step == variational_dropout
    assert not (dropped[0] == dropped[1]).all()  # each stream has units of its own
    assert torch.equal(model.eval()._drop(x, 0.25), x)


@pytest.mark.parametrize("place", ["input_dropout", "dropout", "output_dropout"])
@pytest.mark.parametrize("backend", ["torch", "fused", "reference"])
def test_every_dropout_is_at_its_place(place, backend):
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    plain, noisy = (MODELS["lstm"](7, 8, 2, **options) for options in ({}, {place: 0.5}))
    noisy.load_state_dict(plain.state_dict())
    plain.backend = noisy.backend = backend
    assert torch.equal(noisy.eval()(tokens)[0], plain(tokens)[0])
    assert not torch.equal(noisy.train()(tokens)[0], plain(tokens)[0])


EVERY = [{"type": kind} for kind in KINDS] + [{"layer_norm": True}]


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_a_state_of_other_shapes_is_refused_by_every_backend(options):
    model = build_model(ModelConfig(hidden_size=8, num_layers=2, dropout=0, **options), 5)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    others = {
        "streams": model.zero_state(3),
        "layers": model.zero_state(1)[:1],
        "units": map_state(lambda h: h[:, :4], model.zero_state(1)),
    }
    for backend in model.backends:
        model.backend = backend
        model(tokens, model.zero_state(1))
        for state in others.values():
            with pytest.raises(ValueError, match="state: expected shapes .*one entry per layer, got "):
                model(tokens, state)


@pytest.mark.parametrize("name", ["embedding", "layers.0", "head"])
@pytest.mark.parametrize("options", EVERY, ids=str)
def test_hooks_run_with_every_backend(options, name):
    model = build_model(ModelConfig(hidden_size=8, dropout=0, **options), 5)
    called = []
    model.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    for backend in model.backends:
        model.backend = backend
        model(torch.zeros(2, 4, dtype=torch.int64))
    assert len(called) == len(model.backends)


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_pruned_layers_are_computed_by_every_backend(options):
    """Pruning renames the weights and computes them in a hook, which has to run after every update."""
    model = build_model(ModelConfig(hidden_size=8, num_layers=2, dropout=0, **options), 5)
    tokens = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(model.layers[0].weight_hh_l0.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    for layer in model.layers:
        prune.custom_from_mask(layer, "weight_hh_l0", mask)
    with torch.no_grad():
        for layer in model.layers:
            layer.weight_hh_l0_orig.mul_(2)
    plain = build_model(model.config, 5)
    with torch.no_grad():
        for layer in plain.layers:
            layer.weight_hh_l0.mul_(mask).mul_(2)
    expected, _ = plain(tokens)
    for backend in model.backends:
        model.backend = backend
        torch.testing.assert_close(model(tokens)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_parametrized_layers_are_computed_by_every_backend(kind):
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    model = build_model(ModelConfig(type=kind, hidden_size=8, num_layers=2, dropout=0), 5)
    tokens = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(0))
    plain = build_model(model.config, 5)
    for layer, other in zip(model.layers, plain.layers, strict=True):
        parametrize.register_parametrization(layer, "weight_hh_l0", Half())
        with torch.no_grad():
            other.weight_hh_l0.div_(2)
    expected, _ = plain(tokens)
    for backend in model.backends:
        model.backend = backend
        torch.testing.assert_close(model(tokens)[0], expected)


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_an_evaluation_view_shares_the_weights_and_not_the_mode(options):
    model = build_model(ModelConfig(hidden_size=8, num_layers=2, dropout=0.5, **options), 5).train()
    view = evaluation_view(model)
    tokens = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(0))
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in view.modules())
    with torch.no_grad():
        model.layers[1].weight_hh_l0.mul_(3)
        model.head.bias.add_(1)
    seen, _ = view(tokens)
    torch.testing.assert_close(seen, model.eval()(tokens)[0])
    assert evaluation_view(model) is model
