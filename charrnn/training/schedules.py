"""Learning-rate schedules and early stopping.

Every rule is a pure function of the share of the budget used (steps, epochs or seconds), of the epochs read, or of the
losses measured so far. A resumed run therefore continues with exactly the same rates, and no counter has to be saved.
"""

import math
from collections.abc import Iterator, Sequence

from charrnn.config import TrainingConfig


def rate_factor(config: TrainingConfig, share: float, epoch: float, losses: Sequence[float]) -> float:
    """Learning rate as a fraction of its peak.

    Args:
        config: the schedule and its settings.
        share: share of the budget used, 0 … 1.
        epoch: passes over the training text so far.
        losses: the validation losses so far, in order.
    """
    match config.schedule:
        case "cosine":
            return cosine(share, config.warmup_frac, config.hold_frac)
        case "onecycle":
            return one_cycle(share, config.warmup_frac)
        case "step":
            factor = step_decay(epoch, config.decay, config.decay_every, config.decay_after)
        case "plateau":
            factor = plateau(losses, config.decay, config.decay_patience, config.min_delta)
        case "constant":
            factor = 1.0
    return factor * warm_up(share, config.warmup_frac)


def warm_up(share: float, warmup_frac: float) -> float:
    """Rise linearly from 0.1 to 1 within the first `warmup_frac` of the budget."""
    return 0.1 + 0.9 * share / warmup_frac if share < warmup_frac else 1.0


def cosine(share: float, warmup_frac: float, hold_frac: float) -> float:
    """Warm up, stay at 1 for `hold_frac` of the budget, and fall to 0 along half a cosine.

    Loshchilov & Hutter (2017, arXiv:1608.03983); holding first: Hägele et al. (2024, arXiv:2405.18392).
    """
    fall_begins = warmup_frac + hold_frac
    if share <= fall_begins:
        return warm_up(share, warmup_frac)
    return _half_cosine(1.0, 0.0, (share - fall_begins) / (1 - fall_begins))


def one_cycle(share: float, warmup_frac: float) -> float:
    """Rise from 1/25 to 1 in the first `warmup_frac` of the budget, then fall to 4e-6, both along half a cosine.

    Smith & Topin (2018, arXiv:1708.07120), with the constants of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    if share < warmup_frac:
        return _half_cosine(1 / 25, 1.0, share / warmup_frac)
    return _half_cosine(1.0, 1 / 25e4, (share - warmup_frac) / (1 - warmup_frac)) if warmup_frac < 1 else 1.0


def step_decay(epoch: float, decay: float, every: float, after: float) -> float:
    """Multiply by `decay` after `after` epochs and again every `every` epochs; char-rnn (2015): 0.97, 10, 1."""
    return decay ** (1 + math.floor((epoch - after) / every)) if epoch >= after else 1.0


def plateau(losses: Sequence[float], decay: float, patience: int, min_delta: float = 0.0) -> float:
    """Multiply by `decay` each time that `patience` evaluations in a row were no better than the best before them."""
    falls = waiting = 0
    for improved in _improvements(losses, min_delta):
        waiting = 0 if improved else waiting + 1
        if waiting == patience:
            falls, waiting = falls + 1, 0
    return decay**falls


def evaluations_since_best(losses: Sequence[float], min_delta: float = 0.0) -> int:
    """Number of evaluations since the loss last fell below the best before it by more than `min_delta`."""
    waiting = 0
    for improved in _improvements(losses, min_delta):
        waiting = 0 if improved else waiting + 1
    return waiting


def _improvements(losses: Sequence[float], min_delta: float) -> Iterator[bool]:
    best = math.inf
    for loss in losses:
        improved = loss < best - min_delta
        best = loss if improved else best
        yield improved


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
