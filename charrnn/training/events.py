"""Events: what a `Trainer` yields, as frozen records of plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass

# ---------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Stepped:
    """One update was made."""

    step: int
    epoch: float
    seconds: float
    progress: float  # share of the budget that is used up, 0 … 1


@dataclass(frozen=True)
class Logged:
    """Means over the updates since the last such event."""

    step: int
    epoch: float
    seconds: float
    loss: float  # nats per token
    grad_norm: float  # before clipping
    learning_rate: float  # Muon's has its own peak, and goes the same way
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """The whole validation split was read."""

    step: int
    epoch: float
    seconds: float
    loss: float  # nats per token
    best: bool  # the lowest ever, across resumes
    bpc: float | None = None  # bits per character, where the trainer knows the characters


@dataclass(frozen=True)
class CheckpointDue:
    """A good moment to write a checkpoint to resume from: the weights are known to be finite."""

    step: int
    epoch: float
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The budget is used up, the patience is at its end, or `stop` was called; nothing comes after."""

    step: int
    epoch: float
    seconds: float
    best_loss: float | None  # None where nothing was evaluated
    stopped: bool  # on request
    early: bool = False  # for want of a better loss


Event = Stepped | Logged | Evaluated | CheckpointDue | Finished

Callback = Callable[[Event], None]
