"""Exercises of notebook 05."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.config import ModelConfig
from charrnn.lab.exercises.exercise import Exercise, randn
from charrnn.models.build import build_model
from charrnn.models.recurrent import CharModel
from charrnn.models.state import State, detach_state, flatten_state

TRAINING: dict[str, Exercise] = {}


def one_window(
    model: CharModel,
    inputs: Tensor,
    targets: Tensor,
    state: State,
    loss: Callable[[Tensor, Tensor], Tensor] = lambda logits, targets: F.cross_entropy(
        logits.flatten(0, 1), targets.flatten()
    ),
    given: Callable[[State], State] = lambda state: state,
    carried: Callable[[State, State], State] = lambda before, after: detach_state(after),
) -> tuple[Tensor, State]:
    """Compute the loss of a window and the state to carry on; the options are possible mistakes."""
    logits, after = model(inputs, given(state))
    return loss(logits, targets), carried(state, after)


def _window_probe(returned: Any, *arguments: Any) -> Any:
    """Collect the loss and whether it has a gradient, and the state and whether it is attached to a graph."""
    loss, state = returned
    if isinstance(loss, Tensor) and loss.shape != ():
        raise ValueError(f"expected one number as the loss, got a tensor {tuple(loss.shape)}")
    tensors = list(flatten_state(state).values())
    learns = isinstance(loss, Tensor) and loss.requires_grad
    number = float(loss.detach() if isinstance(loss, Tensor) else loss)
    return number, learns, [tensor.detach() for tensor in tensors], any(t.requires_grad for t in tensors)


def _window_cases() -> list[tuple[Any, ...]]:
    """Make a GRU with a state, and an LSTM without one."""
    cases = []
    for kind, seed in (("gru", 1), ("lstm", 2)):
        model = build_model(ModelConfig(type=kind, hidden_size=4, num_layers=2, dropout=0), 6, seed).double()
        random = torch.Generator().manual_seed(seed)
        inputs, targets = (torch.randint(6, (3, 3), generator=random) for _ in range(2))  # square, so that .T runs
        with torch.no_grad():
            _, state = model(targets, None)
        cases.append((model, inputs, targets, state if kind == "gru" else None))
    return cases


TRAINING["one_window"] = Exercise(
    task=(
        "Take a model, inputs and targets (B, T) and the state after the window before (None at first); return the "
        "mean cross-entropy of all B T predictions, to call backward on, and the state to carry on, cut from the graph."
    ),
    solution=one_window,
    mistakes={
        "the state is still attached to the graph of this window, so the next backward would go into it.": partial(
            one_window, carried=lambda before, after: after
        ),
        "the window begins with an empty memory; you do not use the given state.": partial(
            one_window, given=lambda state: None
        ),
        "you return the given state; return the state after the window.": partial(
            one_window, carried=lambda before, after: before
        ),
        "the loss is a sum, so the size of a step would depend on the size of the window.": partial(
            one_window,
            loss=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"),
        ),
        "you use only the last prediction of each stream; every place of the window has a target.": partial(
            one_window, loss=lambda logits, targets: F.cross_entropy(logits[:, -1], targets[:, -1])
        ),
        "you flatten logits and targets in different orders, so predictions and targets do not match.": partial(
            one_window, loss=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.T.flatten())
        ),
        "the loss is summed along the window and averaged over the streams only.": partial(
            one_window,
            loss=lambda logits, targets: F.cross_entropy(logits.mT, targets, reduction="sum") / len(targets),
        ),
        "F.cross_entropy takes the second axis for the vocabulary: flatten logits (B, T, V) to (B T, V), or transpose "
        "them to (B, V, T).": partial(one_window, loss=F.cross_entropy),
        "the loss is right, but it has no gradient: leave .item() and .detach() out, and keep the tensor.": partial(
            one_window,
            loss=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()).detach(),
        ),
    },
    cases=_window_cases,
    probe=_window_probe,
)


# ----------------------------------------------------------------------------------------------------- cosine_schedule


def cosine_schedule(
    share: float,
    warmup: float,
    hold: float,
    first: float = 0.1,
    begins: Callable[[float, float], float] = lambda warmup, hold: warmup + hold,
    fall: Callable[[float], float] = lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    lasts: Callable[[float], float] = lambda begin: 1 - begin,
) -> float:
    """Compute a learning rate as a share of its peak; the options are possible mistakes."""
    if share < warmup:
        return first + (1 - first) * share / warmup
    begin = begins(warmup, hold)
    return 1.0 if share <= begin else fall((share - begin) / lasts(begin))


TRAINING["cosine_schedule"] = Exercise(
    task=(
        "Take the share of the budget used so far, 0 … 1, and the shares of warm-up and hold; return the rate as a "
        "share of its peak: from 0.1 to 1 in a straight line within the warm-up, 1 for the hold, then down to 0 at the "
        "end of the budget as half a cosine."
    ),
    solution=cosine_schedule,
    mistakes={
        "your warm-up begins at 0, so the first step would change nothing. It has to begin at a tenth.": partial(
            cosine_schedule, first=0.0
        ),
        "you skip the hold: the rate falls right after the warm-up.": partial(
            cosine_schedule, begins=lambda warmup, hold: warmup
        ),
        "the fall begins too early: the hold is counted from the end of the warm-up, not from the start.": partial(
            cosine_schedule, begins=lambda warmup, hold: max(warmup, hold)
        ),
        "the rate does not reach 0: the fall has to fit into the rest of the budget.": partial(
            cosine_schedule, lasts=lambda begin: 1.0
        ),
        "that is a quarter of a cosine; half a cosine is flat at both ends.": partial(
            cosine_schedule, fall=lambda x: math.cos(math.pi / 2 * x)
        ),
        "the fall is a straight line.": partial(cosine_schedule, fall=lambda x: 1 - x),
        "the rate jumps to 0 and rises again; look at the sign of the cosine.": partial(
            cosine_schedule, fall=lambda x: 0.5 * (1 - math.cos(math.pi * x))
        ),
    },
    cases=lambda: [
        (share, warmup, hold)
        for warmup, hold in ((0.1, 0.3), (0.0, 0.0), (0.05, 0.6))
        for share in (0.0, 0.02, 0.08, 0.2, 0.35, 0.5, 0.8, 1.0)
    ],
)


# ----------------------------------------------------------------------------------------------------------------- ema


def ema(
    mean: Sequence[Tensor],
    weights: Sequence[Tensor],
    step: int,
    decay: float,
    kept: Callable[[int, float], float] = lambda step, decay: min(decay, (1 + step) / (10 + step)),
    new: Callable[[float], float] = lambda kept: 1 - kept,
) -> list[Tensor]:
    """Compute the next running mean of weights; the options are possible mistakes."""
    share = kept(step, decay)
    return [share * old + new(share) * weight for old, weight in zip(mean, weights, strict=True)]


TRAINING["ema"] = Exercise(
    task=(
        "Take mean and weights, lists of tensors of the same shapes, step (1 for the first) and decay; return the next "
        "mean: it keeps a share of itself, the smaller of decay and (1 + step) / (10 + step), and takes the rest from "
        "the weights."
    ),
    solution=ema,
    mistakes={
        "mean and weights are swapped: with a decay of 0.99 the mean should hardly move.": partial(
            ema, kept=lambda step, decay: 1 - min(decay, (1 + step) / (10 + step))
        ),
        "you keep the share decay from the first step on, so the mean remembers the untrained weights for long.": (
            partial(ema, kept=lambda step, decay: decay)
        ),
        "you take the larger of the two; at first the mean should forget faster, not slower.": partial(
            ema, kept=lambda step, decay: max(decay, (1 + step) / (10 + step))
        ),
        "you do not use the decay, so late in a run the mean would hardly move.": partial(
            ema, kept=lambda step, decay: (1 + step) / (10 + step)
        ),
        "the shares do not add up to 1: you add the whole weights, and the mean grows.": partial(
            ema, new=lambda kept: 1
        ),
    },
    cases=lambda: [
        (list(randn((2, 3), (3,), seed=seed)), list(randn((2, 3), (3,), seed=seed + 10)), step, decay)
        for seed, (step, decay) in enumerate(((1, 0.9), (30, 0.9), (500, 0.9)))
    ],
)


# ------------------------------------------------------------------------------------------------------- smoothed_loss


def smoothed_loss(
    logits: Tensor,
    targets: Tensor,
    epsilon: float,
    log_p: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    keep: Callable[[float], float] = lambda epsilon: 1 - epsilon,
    spread: Callable[[Tensor, Tensor], Tensor] = lambda log_p, right: log_p.mean(-1),
    reduce: Callable[[Tensor], Tensor] = torch.mean,
) -> Tensor:
    """Compute the cross-entropy with label smoothing; the options are possible mistakes."""
    values = log_p(logits)  # (B, T, V)
    right = values.gather(-1, targets[..., None])[..., 0]  # (B, T)
    return -reduce(keep(epsilon) * right + epsilon * spread(values, right))


TRAINING["smoothed_loss"] = Exercise(
    task=(
        "Take logits (B, T, V), targets (B, T) and epsilon; return the mean cross-entropy in nats, where a target "
        "gives 1 - epsilon of its probability to the right token and epsilon to all V tokens alike, that one included."
    ),
    solution=smoothed_loss,
    mistakes={
        "you share epsilon among the other V - 1 tokens; the right one also gets a part.": partial(
            smoothed_loss,
            spread=lambda log_p, right: (log_p.sum(-1) - right) / (log_p.shape[-1] - 1),
        ),
        "each token gets the whole of epsilon; all of them together should get it.": partial(
            smoothed_loss, spread=lambda log_p, right: log_p.sum(-1)
        ),
        "the right token keeps all of its probability, so a target adds up to more than 1.": partial(
            smoothed_loss, keep=lambda epsilon: 1.0
        ),
        "nothing is smoothed: epsilon has no effect.": lambda logits, targets, epsilon: smoothed_loss(
            logits, targets, 0.0
        ),
        "the loss is a sum over all predictions, not their mean.": partial(smoothed_loss, reduce=torch.sum),
        "the loss is summed along the window and averaged over the streams only.": partial(
            smoothed_loss, reduce=lambda losses: losses.sum() / len(losses)
        ),
        "F.cross_entropy takes the second axis for the vocabulary: flatten logits (B, T, V) to (B T, V), or transpose "
        "them to (B, V, T).": lambda logits, targets, epsilon: F.cross_entropy(
            logits, targets, label_smoothing=epsilon
        ),
        "you use logits as log-probabilities; normalise them first.": partial(
            smoothed_loss, log_p=lambda logits: logits
        ),
        "your softmax runs over the places of the window; the probabilities of the V tokens have to sum to 1.": (
            partial(smoothed_loss, log_p=lambda logits: logits.log_softmax(1))
        ),
    },
    cases=lambda: [
        (randn((2, 3, 5), seed=1)[0], torch.tensor([[0, 4, 2], [1, 1, 3]]), 0.1),
        (randn((1, 4, 7), seed=2)[0], torch.tensor([[6, 0, 3, 5]]), 0.3),
    ],
)


# ------------------------------------------------------------------------------------------------------ muon_direction


def _with_singular_values(momentum: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    U, S, Vh = torch.linalg.svd(momentum, full_matrices=False)  # noqa: N806
    return U * function(S) @ Vh


def _with_v_transposed(momentum: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(momentum, full_matrices=False)  # noqa: N806
    return U @ Vh.T


TRAINING["muon_direction"] = Exercise(
    task=(
        "Take a momentum (M, N) of full rank; return the matrix of the same shape with the same singular vectors, "
        "whose singular values are all 1. Here exactly: use torch.linalg.svd."
    ),
    solution=lambda momentum: _with_singular_values(momentum, torch.ones_like),
    mistakes={
        "you divide the matrix by the norm of all its entries, so its singular values shrink but keep their "
        "proportions.": lambda momentum: momentum / momentum.norm(),
        "you divide the matrix by its largest singular value; the others should become 1, too.": lambda momentum: (
            momentum / torch.linalg.matrix_norm(momentum, 2)
        ),
        "those are the signs of the entries, Adam's first step; the singular values have to become 1.": torch.sign,
        "you scale each row to length 1, which keeps the directions of the rows; they also have to be "
        "orthogonal.": lambda momentum: momentum / momentum.norm(dim=1, keepdim=True),
        "you scale each column to length 1, which keeps the directions of the columns; they also have to be "
        "orthogonal.": lambda momentum: momentum / momentum.norm(dim=0, keepdim=True),
        "torch.linalg.svd returns V already transposed, as Vh, and you transpose it again: the product is U @ Vh.": (
            _with_v_transposed
        ),
        "you invert the singular values, 1/s for s: small ones become large.": lambda momentum: _with_singular_values(
            momentum, torch.reciprocal
        ),
    },
    cases=lambda: [randn((4, 4), seed=1), randn((6, 3), seed=2), randn((2, 5), seed=3)],
)
