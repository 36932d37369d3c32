"""What turns gradients into steps: AdamW, Adam, Muon, RMSprop as in 2015, or plain SGD, all of them PyTorch's."""

from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, RMSprop

from charrnn.config import TrainingConfig
from charrnn.models.recurrent import CharModel

NEWTON_SCHULZ_STEPS = 3  # of Muon's usual 5: the other two take two fifths of its time and gained 0.008 nats in 8 s


def build_optimizers(model: CharModel, config: TrainingConfig) -> list[Optimizer]:
    """The optimizers of a model's parameters: one, or with `muon` Muon for `muon_parameters` and AdamW for the rest.

    Each group of parameters has its peak learning rate as `group["peak"]`. Weight decay applies to the matrices of the
    layers and the head, not to biases, gains and embeddings.

    Args:
        model: on the device that it is trained on.
        config: names the optimizer and its settings.
    """
    matrices = muon_parameters(model) if config.optimizer == "muon" else []
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    rest, rate = _groups(model, decay, matrices), config.learning_rate
    match config.optimizer:  # fused: one kernel for all weights, on every device
        case "adamw":
            optimizers = [AdamW(rest, rate, betas, fused=True)]
        case "adam":
            optimizers = [Adam(rest, rate, betas, fused=True)]
        case "rmsprop":
            optimizers = [RMSprop(rest, rate, alpha=config.beta2)]
        case "sgd":
            optimizers = [SGD(rest, rate, momentum=config.beta1, fused=True)]
        case "muon":
            optimizers = [
                Muon(matrices, config.muon_learning_rate, weight_decay=decay, ns_steps=NEWTON_SCHULZ_STEPS),
                AdamW(rest, rate, betas, fused=True),
            ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


class Together:
    """Several optimizers as one: a loss scaler lets all of them step or, where any gradient overflowed, none."""

    def __init__(self, optimizers: list[Optimizer]):
        self._optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """One step of each."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients of all."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()


def _groups(model: CharModel, weight_decay: float, taken: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters that are not `taken` in two groups: matrices, which decay, and all others, which do not.

    Biases and gains set a scale of their own, and an embedding's rows would decay while their tokens are absent.
    """
    rest = {name: parameter for name, parameter in model.named_parameters() if all(parameter is not p for p in taken)}
    decayed = [name for name, parameter in rest.items() if parameter.ndim > 1 and name != "embedding.weight"]
    return [
        {"params": [rest[name] for name in decayed], "weight_decay": weight_decay},
        {"params": [rest[name] for name in rest if name not in decayed], "weight_decay": 0.0},
    ]


def clip_gradients(model: nn.Module, config: TrainingConfig) -> Tensor:
    """Clip the gradients of `model` by `grad_clip` and `grad_clip_mode`; return their total norm before that, 0-dim."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if config.grad_clip is not None:
        if config.grad_clip_mode == "norm":
            nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, norm)
        else:
            nn.utils.clip_grad_value_(parameters, config.grad_clip)
    return norm


def muon_parameters(model: CharModel) -> list[nn.Parameter]:
    """The matrices of the layers, input and recurrent: Muon (Jordan, 2024) makes each of their updates orthogonal.

    Embedding and head, whose rows belong to tokens, and all vectors are left to AdamW.
    """
    return [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
