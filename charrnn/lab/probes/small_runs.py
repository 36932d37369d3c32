"""Small experiments: a small network on a short text, with one setting changed at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from charrnn.config import RunConfig
from charrnn.data.streams import CharDataset
from charrnn.models.build import build_model
from charrnn.models.recurrent import CharModel
from charrnn.models.state import detach_state
from charrnn.training.events import Evaluated, Event, Logged, to_record
from charrnn.training.trainer import Trainer
from charrnn.types import Tokens

SMALL: dict[str, Any] = {  # named as on the command line; the plain training loop
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
    "backend": "torch",
    "threads": 1,  # a network this small is slower with more
    "seed": 1,
}


def small_trainer(train: Tokens, val: Tokens, vocab_size: int, **settings: Any) -> Trainer:
    """Make a trainer of a new network.

    Args:
        train: token ids `(N,)` to train on.
        val: token ids to evaluate on; fewer than two switch evaluation off.
        vocab_size: V.
        **settings: changes to `SMALL`, named as on the command line.

    Raises:
        ConfigError: a setting is unknown or out of range.
        CorpusError: `train` is too short.
    """
    config = RunConfig().override({**SMALL, **settings})
    model = build_model(config.model, vocab_size, config.device.seed)
    return Trainer(model, train, val, config.training, config.device, config.logging.log_interval)


def records_of(trainer: Trainer, *callbacks: Callable[[Event], None]) -> list[dict[str, Any]]:
    """Train to the end; what `metrics.jsonl` would hold: a record for each Logged and Evaluated event."""
    return list(recorded(trainer, *callbacks))


def recorded(trainer: Trainer, *callbacks: Callable[[Event], None]) -> Iterator[dict[str, Any]]:
    """The same records, each as it comes."""
    for event in trainer:
        for callback in callbacks:
            callback(event)
        if isinstance(event, Logged | Evaluated):
            yield to_record(event)


def losses_of(records: Sequence[Mapping[str, Any]], event: str = "evaluated") -> list[float]:
    """Collect the losses of `logged` or `evaluated` records, in order."""
    return [record["loss"] for record in records if record["event"] == event]


def train_on_windows(
    model: CharModel, dataset: CharDataset, steps: int, carry: bool, learning_rate: float = 0.01
) -> None:
    """Train a model on the first windows of an epoch, with its state carried from window to window or reset in each."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0, fused=True)
    state = None
    for window in islice(dataset.windows(epoch=0), steps):
        logits, state = model(window.inputs, detach_state(state) if carry and state else None)
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), window.targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
