"""From gradients to updates: AdamW, Adam, Muon, RMSprop as in 2015, or plain SGD, all of them PyTorch's."""

from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, RMSprop

from charrnn.config import TrainingConfig
from charrnn.models.recurrent import CharModel

NEWTON_SCHULZ_STEPS = 3  # Muon's usual 5 take 1.7 times as long and gained 0.008 nats in 8 s


def build_optimizers(model: CharModel, config: TrainingConfig) -> list[Optimizer]:
    """The optimizers of a model's parameters: one, or with `muon` Muon for `muon_parameters` and AdamW for the rest.

    Each parameter group keeps its peak learning rate as `group["peak"]`. Weight decay applies to the matrices of the
    layers and the head, not to biases, gains and embeddings.

    Args:
        model: on the device that it is trained on.
        config: the optimizer and its settings.
    """
    matrices = muon_parameters(model) if config.optimizer == "muon" else []
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    groups, rate = _groups(model, decay, matrices), config.learning_rate
    optimizers: list[Optimizer]
    match config.optimizer:  # fused: one kernel for all weights, on every device
        case "adamw":
            optimizers = [AdamW(groups, rate, betas, fused=True)]
        case "adam":
            optimizers = [Adam(groups, rate, betas, fused=True)]
        case "rmsprop":
            optimizers = [RMSprop(groups, rate, alpha=config.beta2)]
        case "sgd":
            optimizers = [SGD(groups, rate, momentum=config.beta1, fused=True)]
        case "muon":
            muon = Muon(matrices, config.muon_learning_rate, weight_decay=decay, ns_steps=NEWTON_SCHULZ_STEPS)
            optimizers = [muon, AdamW(groups, rate, betas, fused=True)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def combine(optimizers: list[Optimizer]) -> Optimizer:
    """One optimizer for all: a loss scaler then lets all of them step or, if any gradient overflowed, none.

    It has to be made again when an optimizer loads its state, which replaces its parameter groups.
    """
    return optimizers[0] if len(optimizers) == 1 else _Combined(optimizers)


class _Combined(Optimizer):
    def __init__(self, optimizers: list[Optimizer]):
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._optimizers = optimizers

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Make one step with each optimizer."""
        for optimizer in self._optimizers:
            optimizer.step()


def muon_parameters(model: CharModel) -> list[nn.Parameter]:
    """The input and recurrent matrices of the layers, whose updates Muon (Jordan, 2024) makes orthogonal.

    AdamW updates all vectors, and the embedding and the head, whose rows belong to tokens.
    """
    return [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]


def _groups(model: CharModel, weight_decay: float, others: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters that are not among `others`, in two groups: matrices, which decay, and all others, which do not.

    Biases and gains set a scale of their own, and rows of an embedding would decay while their tokens do not occur.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    excluded = {id(parameter) for parameter in others}
    for name, parameter in model.named_parameters():
        if id(parameter) not in excluded:
            (decayed if parameter.ndim > 1 and name != "embedding.weight" else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def clip_gradients(model: nn.Module, config: TrainingConfig) -> Tensor:
    """Clip the gradients of `model` by `grad_clip` and `grad_clip_mode`; return their total norm before that, 0-dim."""
    parameters = list(model.parameters())
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if config.grad_clip is not None:
        if config.grad_clip_mode == "norm":
            nn.utils.clip_grads_with_norm_(parameters, config.grad_clip, norm)
        else:
            nn.utils.clip_grad_value_(parameters, config.grad_clip)
    return norm
