"""What turns gradients into steps: AdamW, Adam, Muon, RMSprop as in 2015, or plain SGD, all of them PyTorch's."""

from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer, RMSprop

from charrnn.config import TrainingConfig
from charrnn.models import CharModel

NEWTON_SCHULZ_STEPS = 3  # of Muon's usual 5: the other two take two fifths of its time and gained 0.008 nats in 8 s


def build_optimizers(model: CharModel, config: TrainingConfig) -> list[Optimizer]:
    """The optimizers of a model's parameters: one, or with `muon` Muon for `muon_parameters` and AdamW for the rest.

    Each group of parameters has its peak learning rate as `group["peak"]`.

    Args:
        model: on the device that it is trained on.
        config: names the optimizer and its settings.
    """
    rest, rate = list(model.parameters()), config.learning_rate
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    fused = rest[0].device.type in ("cpu", "cuda")  # one kernel for all weights; MPS has none
    match config.optimizer:
        case "adamw":
            optimizers = [AdamW(rest, rate, betas, weight_decay=decay, fused=fused)]
        case "adam":
            optimizers = [Adam(rest, rate, betas, weight_decay=decay, fused=fused)]
        case "rmsprop":
            optimizers = [RMSprop(rest, rate, alpha=config.beta2, weight_decay=decay)]
        case "sgd":
            optimizers = [SGD(rest, rate, momentum=config.beta1, weight_decay=decay, fused=fused)]
        case "muon":
            matrices = muon_parameters(model)
            chosen = {id(parameter) for parameter in matrices}
            rest = [parameter for parameter in rest if id(parameter) not in chosen]
            optimizers = [
                Muon(matrices, config.muon_learning_rate, weight_decay=decay, ns_steps=NEWTON_SCHULZ_STEPS),
                AdamW(rest, rate, betas, weight_decay=decay, fused=fused),
            ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def muon_parameters(model: CharModel) -> list[nn.Parameter]:
    """The matrices of the layers, input and recurrent: Muon (Jordan, 2024) makes each of their updates orthogonal.

    Embedding and head, whose rows belong to tokens, and all vectors are left to AdamW.
    """
    return [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
