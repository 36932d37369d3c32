import pytest
import torch

from charrnn.config import ModelConfig, TrainingConfig
from charrnn.models.build import build_model
from charrnn.training.optimizers import build_optimizers, clip_gradients, muon_parameters

NAMES = ["adamw", "adam", "muon", "rmsprop", "sgd"]


def tiny_model(**options):
    return build_model(ModelConfig(**{"hidden_size": 8, "num_layers": 2, **options}), 5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained_by_one_optimizer_from_its_peak(name):
    model = tiny_model()
    rates = {"learning_rate": 0.01, "muon_learning_rate": 0.03}
    optimizers = build_optimizers(model, TrainingConfig(optimizer=name, beta1=0.7, beta2=0.8, **rates))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))
    assert {group["peak"] for group in groups} == ({0.01, 0.03} if name == "muon" else {0.01})
    last = groups[-1]
    assert last.get("betas", (last.get("momentum"), last.get("alpha"))) == {
        "rmsprop": (0, 0.8),
        "sgd": (0.7, None),
    }.get(name, (0.7, 0.8))


@pytest.mark.parametrize("options", [{}, {"type": "gru"}, {"layer_norm": True}, {"tie_weights": True}])
def test_muon_is_for_the_matrices_of_the_layers(options):
    model = tiny_model(**options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = [names[id(parameter)] for parameter in muon_parameters(model)]
    assert chosen == [f"layers.{i}.weight_{kind}_l0" for i in (0, 1) for kind in ("ih", "hh")]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("name", ["adamw", "adam", "muon", "sgd"])
def test_one_kernel_updates_all_weights(name, device):
    if device != "cpu" and not getattr(torch, device).is_available():
        pytest.skip(f"no {device.upper()} device on this machine")
    model = tiny_model().to(device)
    *_, optimizer = build_optimizers(model, TrainingConfig(optimizer=name))
    assert optimizer.defaults["fused"]
    before = model.head.weight.detach().clone()
    model(torch.zeros(2, 3, dtype=torch.int64, device=device))[0].sum().backward()
    optimizer.step()
    assert (model.head.weight != before).all()


def test_rmsprop_is_that_of_2015():
    """m = 0.95 m + 0.05 g², w -= rate g / sqrt(m)."""
    model = tiny_model()
    config = TrainingConfig(optimizer="rmsprop", beta2=0.95, learning_rate=2e-3, weight_decay=0)
    (optimizer,) = build_optimizers(model, config)
    weight = model.head.weight
    before, square = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        square = 0.95 * square + 0.05 * weight.grad**2
        before -= 2e-3 * weight.grad / (square.sqrt() + 1e-8)
        optimizer.step()
    assert torch.allclose(weight, before)


def test_weight_decay_is_decoupled_in_adamw_alone():
    """With no gradient AdamW shrinks a weight by rate times decay; Adam's decay is scaled to steps of the rate."""
    for name, factor in (("adamw", 1 - 0.1 * 0.5), ("adam", None)):
        model = tiny_model()
        (optimizer,) = build_optimizers(model, TrainingConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5))
        before = model.head.weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved = model.head.weight / before
        assert torch.allclose(moved, torch.full_like(moved, factor)) if factor else moved.std() > 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"tie_weights": True}])
def test_only_matrices_of_layers_and_head_decay(name, options):
    model = tiny_model(**options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [group for o in build_optimizers(model, TrainingConfig(optimizer=name)) for group in o.param_groups]
    decays = {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}
    layers = {f"layers.{i}.weight_{kind}_l0" for i in (0, 1) for kind in ("ih", "hh")}
    assert decays == (layers if options == {"tie_weights": True} else layers | {"head.weight"})


def test_without_a_limit_gradients_are_measured_and_left_alone():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    norm = clip_gradients(model, TrainingConfig(grad_clip=None))
    assert norm == pytest.approx(1e3 * sum(p.numel() for p in model.parameters()) ** 0.5)
    assert all((parameter.grad == 1e3).all() for parameter in model.parameters())
