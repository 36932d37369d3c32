"""Small experiments: a little network on a little text, one setting changed at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from charrnn.config import RunConfig
from charrnn.corpus import Tokens
from charrnn.models import build_model
from charrnn.training import Evaluated, Event, Logged, Trainer

SMALL: dict[str, Any] = {  # named as on the command line; the loop without any ingredient
    "hidden_size": 64,
    "num_layers": 1,
    "dropout": 0.0,
    "batch_size": 16,
    "seq_length": 20,
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "grad_clip": None,
    "schedule": "constant",
    "warmup_frac": 0.0,
    "max_steps": 300,
    "eval_interval": 50,
    "log_interval": 10,
    "device": "cpu",
    "precision": "fp32",
    "backend": "native",
    "threads": 1,  # so small a network is slower with more
    "seed": 1,
}


def small_trainer(train: Tokens, val: Tokens, vocab_size: int, **settings: Any) -> Trainer:
    """A trainer of a new network.

    Args:
        train: token ids `(N,)` to learn from.
        val: token ids to evaluate on; fewer than two are never evaluated.
        vocab_size: tokens V.
        **settings: what differs from `SMALL`, named as on the command line.

    Raises:
        ConfigError: a setting is unknown or out of range.
        CorpusError: `train` is too short.
    """
    config = RunConfig().override({**SMALL, **settings})
    model = build_model(config.model, vocab_size, config.device.seed)
    return Trainer(model, train, val, config.training, config.device, config.logging.log_interval)


def records_of(trainer: Trainer, *monitors: Callable[[Event], None]) -> list[dict[str, Any]]:
    """Train to the end; what `metrics.jsonl` would hold: a record for each Logged and Evaluated event."""
    return list(recorded(trainer, *monitors))


def recorded(trainer: Trainer, *monitors: Callable[[Event], None]) -> Iterator[dict[str, Any]]:
    """The same records, each as it comes."""
    for event in trainer:
        for monitor in monitors:
            monitor(event)
        if isinstance(event, Logged | Evaluated):
            yield {"event": type(event).__name__.lower(), **asdict(event)}


def losses_of(records: Sequence[Mapping[str, Any]], event: str = "evaluated") -> list[float]:
    """The losses of `logged` or `evaluated` records, in order."""
    return [record["loss"] for record in records if record["event"] == event]
