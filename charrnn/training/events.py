"""Events: what a `Trainer` yields, as frozen records of plain numbers."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class _Moment:
    """The time of an event."""

    step: int  # updates made
    epoch: float  # passes over the training split
    seconds: float  # of training, evaluations included


@dataclass(frozen=True)
class Stepped(_Moment):
    """One update was made."""

    progress: float  # share of the budget used, 0 … 1


@dataclass(frozen=True)
class Logged(_Moment):
    """Means over the updates since the last such event."""

    loss: float  # nats per token
    grad_norm: float  # before clipping
    learning_rate: float  # Muon has its own peak rate, scaled by the same schedule
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated(_Moment):
    """The whole validation split was read."""

    loss: float  # nats per token
    best: bool  # the lowest ever, across resumes
    bpc: float | None = None  # bits per character, if the trainer can convert the loss


@dataclass(frozen=True)
class CheckpointDue(_Moment):
    """A checkpoint should be written now, to resume from; the weights are known to be finite."""


@dataclass(frozen=True)
class Finished(_Moment):
    """The budget is used up, the patience is exhausted, or `stop` was called. This is the last event."""

    best_loss: float | None  # None if nothing was evaluated
    stopped: bool  # by `stop`
    early: bool = False  # by early stopping


Event = Stepped | Logged | Evaluated | CheckpointDue | Finished

Callback = Callable[[Event], None]


def to_record(event: Event) -> dict[str, Any]:
    """A line of `metrics.jsonl`: the fields of an event and its name, `{"event": "logged", "step": 100, …}`."""
    return {"event": type(event).__name__.lower(), **asdict(event)}
