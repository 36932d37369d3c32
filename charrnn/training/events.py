"""Events: what a `Trainer` yields, as frozen records of plain numbers."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


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
    learning_rate: float  # Muon has its own peak rate, scaled by the same schedule
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """The whole validation split was read."""

    step: int
    epoch: float
    seconds: float
    loss: float  # nats per token
    best: bool  # the lowest ever, across resumes
    bpc: float | None = None  # bits per character, if the trainer can convert the loss


@dataclass(frozen=True)
class CheckpointDue:
    """A checkpoint should be written now, to resume from; the weights are known to be finite."""

    step: int
    epoch: float
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The budget is used up, the patience is exhausted, or `stop` was called. This is the last event."""

    step: int
    epoch: float
    seconds: float
    best_loss: float | None  # None if nothing was evaluated
    stopped: bool  # by `stop`
    early: bool = False  # by early stopping


Event = Stepped | Logged | Evaluated | CheckpointDue | Finished

Callback = Callable[[Event], None]


def to_record(event: Event) -> dict[str, Any]:
    """A line of `metrics.jsonl`: the fields of an event and its name, `{"event": "logged", "step": 100, …}`."""
    return {"event": type(event).__name__.lower(), **asdict(event)}
