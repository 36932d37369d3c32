"""The training loop, as a generator of events.

    for event in Trainer(model, train, val, config):
        match event: ...

Truncated backpropagation through time (Williams & Peng, 1990): the state is carried from window to window and cut from
the graph in between; it starts from zeros at the beginning of each epoch, and of each document where there are such.
"""

import contextlib
import copy
import math
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import DeviceConfig, TrainingConfig
from charrnn.data.streams import Batch, CharDataset, DocumentDataset
from charrnn.device import (
    autocast,
    autotune,
    check_precision,
    cpu_threads,
    keep_freed_memory,
    seeded_step,
    select_device,
    synchronize,
)
from charrnn.errors import ConfigError, DivergedError
from charrnn.models.recurrent import CharModel
from charrnn.models.state import State, begin_rows, detach_state, flatten_state, map_state, unflatten_state
from charrnn.training import distributed
from charrnn.training.evaluation import evaluate
from charrnn.training.events import Callback, CheckpointDue, Evaluated, Event, Finished, Logged, Stepped
from charrnn.training.optimizers import CombinedOptimizer, build_optimizers, clip_gradients
from charrnn.training.schedules import evaluations_since_best, rate_factor
from charrnn.training.stopwatch import Stopwatch
from charrnn.types import Tokens


@dataclass
class Progress:
    """Where a run stands; with the weights, the optimizer and the state, all that resuming needs."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # tokens of each stream read in this epoch; of documents, of them all
    seconds: float = 0.0
    evaluated_at: int = 0  # the last step at which the validation split was read
    saved_at: int = -1  # the last step at which a checkpoint was due
    best_loss: float | None = None
    history: list[tuple[int, float, float]] = field(default_factory=list)  # step, epoch and loss of each evaluation
    precision: str | None = None  # chosen once, kept for the whole run
    backend: str | None = None  # likewise
    device: str | None = None  # the kind of device that they were chosen for
    loss_scale: dict[str, Any] | None = None  # of fp16 training


# --------------------------------------------------------------------------------------------------------- trainer


class Trainer:
    """Trains `model` and tells what happens.

    Iterating yields events; `break` is safe at any of them, and iterating again goes on at the next step. The random
    numbers of a step depend on the seed and the step's number alone. From the first step on the process keeps the
    memory that it frees, see `device.keep_freed_memory`. Under torchrun every rank has a trainer, see `distributed`.

    Args:
        model: trained in place, moved to `device`.
        train: token ids `(N,)` to learn from.
        val: token ids to evaluate on; fewer than two are never evaluated.
        config: budgets, sizes and rates.
        device: where, how precisely and from which seed.
        log_interval: steps between `Logged` events.
        to_bpc: turns the loss on `val`, nats per token, into bits per character.
        end: id of the end token that stands before, between and after the documents of `train` and `val`; None if they
            are one text each.

    Attributes:
        ema_model: with `ema_decay` a model whose weights are the running mean of the trained ones, else None.

    Raises:
        CorpusError: `train` is too short.
        ConfigError: `device` is not on this machine, or cannot compute in that precision; no such backend for `model`;
            the streams cannot be shared out evenly; documents with a `seq_length_start`.

    Warns:
        UserWarning: there are too few streams or documents for `batch_size`, or half of what is computed is padding.
    """

    def __init__(
        self,
        model: CharModel,
        train: Tokens,
        val: Tokens,
        config: TrainingConfig | None = None,
        device: DeviceConfig | None = None,
        log_interval: int = 100,
        to_bpc: Callable[[float], float] | None = None,
        end: int | None = None,
    ):
        self.config = config or TrainingConfig()
        self.log_interval = log_interval
        self.progress = Progress()
        self._device_config = device or DeviceConfig()
        self.device = select_device(self._device_config.device)
        check_precision(self._device_config.precision, self.device)
        distributed.check_device(self.device)
        self.model = model.to(self.device)
        backend = self._device_config.backend
        if backend not in ("auto", *model.known_backends()):
            why = "; that is for an LSTM on a CPU, and needs numba: pip install numba" if backend == "numba" else ""
            raise ConfigError(
                f"device.backend (--backend): expected auto, {' or '.join(model.backends)} for this model here, "
                f"got {backend!r}{why}"
            )
        self.dataset = self._dataset(train, end)
        if self.dataset.batch_size % distributed.world_size():
            raise ConfigError(
                f"training.batch_size (--batch-size): expected a multiple of the {distributed.world_size()} processes, "
                f"got {self.dataset.batch_size}"
            )
        self.optimizers = build_optimizers(self.model, self.config)
        self._optimizer = CombinedOptimizer(self.optimizers) if len(self.optimizers) > 1 else self.optimizers[0]
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False) if self.config.ema_decay else None
        self.val = val
        self.to_bpc, self._end = to_bpc, end
        self._state: State = None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self._stop = self._asked_to_stop = False
        self._iteration: Callable[[], Generator[Event] | None] = lambda: None
        self._clear_means()

    def _dataset(self, train: Tokens, end: int | None) -> CharDataset | DocumentDataset:
        config, seed, name = self.config, self._device_config.seed, "the training split"
        sizes = config.batch_size, config.seq_length
        if end is None:
            return CharDataset(train, *sizes, seed, name, config.seq_length_start, config.seq_length_warmup_epochs)
        if config.seq_length_start is not None:
            raise ConfigError(
                "training.seq_length_start (--seq-length-start): expected null for documents, whose windows vary"
            )
        dataset = DocumentDataset(train, *sizes, end, seed, name)
        if dataset.batch_size < config.batch_size:
            warnings.warn(f"{name}: {dataset.documents} documents, so as many are read side by side", stacklevel=3)
        if dataset.padding > 0.5:
            warnings.warn(
                f"{name}: {dataset.padding:.0%} of each step is padding, for {dataset.batch_size} documents side by "
                "side differ too much in length; lower batch_size",
                stacklevel=3,
            )
        return dataset

    @property
    def evaluated_model(self) -> CharModel:
        """The model whose loss is measured and which is kept: the mean of the weights where there is one."""
        return self.model if self.ema_model is None else self.ema_model

    def fit(self, *callbacks: Callback) -> None:
        """Run to the end of the budget, telling every event to every callback."""
        with contextlib.closing(iter(self)) as events:  # a callback's error ends the iteration, whoever keeps its frame
            for event in events:
                for callback in callbacks:
                    callback(event)

    def stop(self) -> None:
        """End at the next step with a `CheckpointDue` and a `Finished`; safe in a signal handler or a callback."""
        self._asked_to_stop = True
        if distributed.world_size() == 1:  # else the ranks agree on it in `_update`
            self._stop = True

    def __iter__(self) -> Generator[Event]:
        """Events of a run; raises DivergedError when the loss or the gradient is no longer finite.

        There is one iteration at a time: a new one ends those before, which a traceback may keep alive.
        """
        if (earlier := self._iteration()) is not None:
            earlier.close()
        iteration = self._events()
        self._iteration = weakref.ref(iteration)
        return iteration

    def _events(self) -> Generator[Event]:
        before = self.model.backend
        try:
            with cpu_threads(self._device_config.threads):
                self._start()
                with Stopwatch() as self._stopwatch:
                    yield from self._run()
        finally:
            self.model.backend = before  # what trains fastest need not be what writes fastest
            self._stop = self._asked_to_stop = False

    def _run(self) -> Iterator[Event]:
        progress = self.progress
        if not self._ends():  # at step 0, and where a caller broke out before it was told
            yield from self._log_due()
            yield from self._due()
        while not self._ends():
            rows = distributed.local_rows(self.dataset.batch_size)
            for window in self.dataset.windows(progress.epoch, progress.position, self.device, rows):
                self._update(window)
                yield from self._report()
                if self._ends():
                    break
            else:  # the next epoch reads the text from its beginning
                progress.epoch, progress.position, self._state = progress.epoch + 1, 0, None
        yield from self._log_due()
        yield from self._due(now=not self._stop, save=True)
        early = self.share_used() < 1 and self.out_of_patience() and not self._stop
        yield Finished(progress.step, self.epoch, progress.seconds, progress.best_loss, self._stop, early)

    @property
    def epoch(self) -> float:
        """Passes over the training split so far, with the fraction of the present one."""
        return self.progress.epoch + self.progress.position / self.dataset.stream_length

    def share_used(self) -> float:
        """Share of the budget that is used up, 0 … 1; of several budgets the one nearest its end."""
        spent = {"max_steps": self.progress.step, "max_epochs": self.epoch, "max_seconds": self.progress.seconds}
        budgets = {name: getattr(self.config, name) for name in spent}
        return min(1.0, max(spent[name] / budget for name, budget in budgets.items() if budget is not None))

    def done(self) -> bool:
        """Whether nothing is left to do: the budget is used up, or the patience at its end."""
        return self.share_used() >= 1 or self.out_of_patience()

    def out_of_patience(self) -> bool:
        """Whether as many evaluations as `patience` says have brought no better loss."""
        patience = self.config.patience
        return patience is not None and evaluations_since_best(self._losses(), self.config.min_delta) >= patience

    def _losses(self) -> list[float]:
        return [loss for _, _, loss in self.progress.history]

    # ------------------------------------------------------------------------------------------- to stop and go on

    def state_dict(self) -> dict[str, Tensor]:
        """What `load_state_dict` needs beside `progress` and the weights of `evaluated_model`.

        That is the optimizer's state, the carried state (of several ranks, as it was at the last `CheckpointDue`) and,
        where `ema_model` is evaluated, the weights themselves.
        """
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors = {
            f"optimizer.{names[parameter]}.{key}": value
            for optimizer in self.optimizers
            for parameter, memory in optimizer.state.items()
            for key, value in memory.items()
        }
        if self.ema_model is not None:
            tensors |= {f"weights.{name}": parameter.detach() for name, parameter in self.model.named_parameters()}
        state = self._state if distributed.world_size() == 1 else self._gathered
        return tensors | {f"state.{key}": value for key, value in flatten_state(state).items()}

    def load_state_dict(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from where another trainer of the same model was when it gave its `progress` and `tensors`.

        A precision or backend that was asked for, not `auto`, replaces the one that the run had.
        """
        self._clear_means()
        self.progress = Progress(**progress)
        self.progress.history = [tuple(evaluation) for evaluation in self.progress.history]
        for name in ("precision", "backend"):
            if getattr(self._device_config, name) not in ("auto", getattr(self.progress, name)):
                setattr(self.progress, name, None)
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "weights": {}, "state": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value.to(self.device)
        if self.ema_model is not None:
            self.ema_model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in parts["weights"]:
                    parameter.copy_(parts["weights"][name])
        dtype = next(self.model.parameters()).dtype  # autocast may have left the state in half precision
        state = unflatten_state(parts["state"])
        rows = distributed.local_rows(self.dataset.batch_size)
        self._state = None if state is None else map_state(lambda h: h[rows].to(dtype), state)
        self._restore_optimizers(parts["optimizer"])

    def _restore_optimizers(self, memory: Mapping[str, Tensor]) -> None:
        """Give each optimizer its part of `memory`, whose keys are the name of a parameter and of an entry."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        entries: dict[str, dict[str, Tensor]] = {name: {} for name in names.values()}
        for key, value in memory.items():
            name, _, entry = key.rpartition(".")
            entries[name][entry] = value.clone()
        for optimizer in self.optimizers:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                i: entries[names[parameter]] for i, parameter in enumerate(parameters) if entries[names[parameter]]
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    # -------------------------------------------------------------------------------------------------- one step

    def _start(self) -> None:
        progress = self.progress
        keep_freed_memory()
        if progress.device != self.device.type:
            progress.precision = progress.backend = None
        backend = progress.backend or self._device_config.backend
        if backend not in ("auto", self.model.backend) and backend not in self.model.backends:
            progress.backend, backend = None, "auto"  # numba does not work on every machine
        if progress.precision is None or progress.backend is None:
            precision = progress.precision or self._device_config.precision
            asked = self._device_config.model_copy(update={"backend": backend, "precision": precision})
            choices = self.model.backends if backend == "auto" else (backend,)
            fastest = autotune(asked, self.device, choices, self._try)
            progress.backend, progress.precision = distributed.broadcast(fastest)
        progress.device = self.device.type
        self.model.backend = progress.backend
        if progress.precision == "fp16" and not self._scaler.is_enabled():
            self._scaler = torch.amp.GradScaler(self.device.type)
            self._scaler.load_state_dict(progress.loss_scale or self._scaler.state_dict())
        self._replica = distributed.wrap_ddp(self.model, self.device)

    def _ends(self) -> bool:
        return self._stop or self.done()

    def _update(self, window: Batch) -> None:
        begin = self._stopwatch.seconds()
        config, progress = self.config, self.progress
        self.model.train()
        with seeded_step(self.device, self._device_config.seed, progress.step, distributed.rank()):
            self._backward(window)
        self._scaler.unscale_(self._optimizer)
        grad_norm = clip_gradients(self.model, config)
        factor = rate_factor(config, self.share_used(), self.epoch, self._losses())
        self._rate = config.learning_rate * factor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        self._scaler.step(self._optimizer)
        self._optimizer.zero_grad()
        self._scaler.update()

        progress.step += 1
        progress.position = window.end
        self._average()
        less, stop = distributed.all_reduce_max(-self._stopwatch.lap(), self._asked_to_stop)
        progress.seconds -= less  # the least of all ranks: one that is stopped keeps the others waiting
        self._stop = bool(stop)
        # a scaled gradient that overflows is the scaler's business: it skips that step and lowers the scale
        self._norm_sum += grad_norm.nan_to_num(0, 0, 0) if self._scaler.is_enabled() else grad_norm
        self._steps += 1
        self._busy += self._stopwatch.seconds() - begin

    def _backward(self, window: Batch) -> None:
        """Gradients of the mean loss over this rank's streams, in as many parts as asked for; carries the state on."""
        inputs, targets = window.inputs, window.targets  # (B, T)
        self._state = begin_rows(self._state, window.begins)
        # every token weighs the same, so a window cut short at an epoch's border pulls less
        full, parts = len(inputs) * window.full, min(self.config.micro_batches, len(inputs))
        states: list[State] = []
        for part in np.array_split(np.arange(len(inputs)), parts):
            own = slice(part[0], part[-1] + 1)
            state = None if self._state is None else map_state(lambda h, own=own: h[own], self._state)
            last = len(states) == parts - 1
            with contextlib.nullcontext() if last or self._replica is self.model else self._replica.no_sync():
                objective, loss, state = self._loss(self._replica, inputs[own], targets[own], state)
                self._scaler.scale(objective / full).backward()
            states.append(state)
            self._loss_sum += loss
        self._tokens += inputs.numel() if window.lengths is None else int(window.lengths.sum())
        self._state = map_state(lambda *h: torch.cat(h), *states)

    def _loss(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, state: State = None, precision: str | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """What is minimised and the nats, summed over a window `(B, T)` without its padding; the state to carry on."""
        with autocast(self.device, precision or self.progress.precision):
            logits, state = model(inputs, state)  # (B, T, V)
        log_p = F.log_softmax(logits.float().flatten(0, 1), dim=1)  # (B T, V)
        targets, smoothing = targets.flatten(), self.config.label_smoothing
        objective = loss = F.nll_loss(log_p, targets, reduction="sum")  # it ignores -100
        if smoothing:
            objective = (1 - smoothing) * loss - smoothing * (log_p.mean(dim=1) * (targets >= 0)).sum()
        return objective, loss.detach(), detach_state(state)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the mean of the weights on; at first it forgets faster, not to remember the untrained ones."""
        if self.ema_model is not None:
            step = self.progress.step
            kept = min(self.config.ema_decay, (1 + step) / (10 + step))
            for mean, parameter in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - kept)

    def _try(self, backend: str, precision: str) -> None:
        """The costly part of a step on made-up tokens, to be timed; leaves nothing behind."""
        self.model.backend = backend
        self.model.train()
        rows = distributed.local_rows(self.dataset.batch_size)
        size = (math.ceil((rows.stop - rows.start) / self.config.micro_batches), self.config.seq_length)
        tokens = torch.zeros(size, dtype=torch.int64, device=self.device)
        with seeded_step(self.device, self._device_config.seed, 0):
            objective, _, _ = self._loss(self.model, tokens, tokens, precision=precision)
            objective.backward()
        self.model.zero_grad()

    # --------------------------------------------------------------------------------------------- what it tells

    def _report(self) -> Iterator[Event]:
        yield Stepped(self.progress.step, self.epoch, self.progress.seconds, self.share_used())
        yield from self._log_due()
        if not self._ends():  # at the end the last evaluation comes before the last save
            yield from self._due()

    def _log_due(self) -> Iterator[Event]:
        if self._steps and (self.progress.step % self.log_interval == 0 or self._ends()):
            yield self._log()

    def _due(self, now: bool = False, save: bool = False) -> Iterator[Event]:
        """An evaluation and a save, if it is the step for them or they are wanted now, and each was not done yet."""
        progress, config = self.progress, self.config
        evaluating = now or progress.step % config.eval_interval == 0
        if evaluating and progress.evaluated_at < progress.step and len(self.val) > 1:
            yield self._evaluate()
        saving = save or progress.step % config.save_interval == 0
        if saving and progress.saved_at < progress.step:
            yield self._save_due()

    def _clear_means(self) -> None:
        self._loss_sum = torch.zeros((), device=self.device)
        self._norm_sum = torch.zeros((), device=self.device)
        self._tokens, self._steps, self._busy = 0, 0, 0.0

    def _log(self) -> Logged:
        self._settle()
        self._check_finite()
        sums = self._loss_sum.item(), self._tokens, self._norm_sum.item() / self._steps
        loss, tokens, norm = distributed.all_reduce_mean(*sums)  # ranks need not have read as many tokens of documents
        speed = distributed.world_size() * tokens / self._busy
        self._clear_means()
        return Logged(self.progress.step, self.epoch, self.progress.seconds, loss / tokens, norm, self._rate, speed)

    def _settle(self) -> None:
        """Wait for a GPU to finish the updates: their time ends here, not where Python has handed them over."""
        begin = self._stopwatch.seconds()
        synchronize(self.device)
        self._busy += self._stopwatch.seconds() - begin

    def _evaluate(self) -> Evaluated:
        progress = self.progress
        self._settle()
        self._check_finite()
        loss = evaluate(self.evaluated_model, self.val, end=self._end) if distributed.rank() == 0 else 0.0
        loss, seconds = distributed.broadcast((loss, self._stopwatch.lap()))
        progress.seconds += seconds
        self._refuse_infinite("validation loss", loss)
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss = loss
        progress.evaluated_at = progress.step
        progress.history.append((progress.step, self.epoch, loss))
        if progress.saved_at == progress.step:
            progress.saved_at -= 1  # that checkpoint does not know this loss: it is due again
        bpc = self.to_bpc(loss) if self.to_bpc else None
        return Evaluated(progress.step, self.epoch, progress.seconds, loss, best, bpc)

    def _save_due(self) -> CheckpointDue:
        self._settle()
        self._check_finite()
        self._gathered = distributed.all_gather_rows(self._state)
        self.progress.saved_at = self.progress.step
        self.progress.loss_scale = self._scaler.state_dict() or None
        return CheckpointDue(self.progress.step, self.epoch, self.progress.seconds)

    def _check_finite(self) -> None:
        """Asked when something is told, not at every step: to read a number is to wait for the GPU."""
        weights = torch.stack([parameter.detach().sum() for parameter in self.model.parameters()]).sum()
        for what, total in (("loss", self._loss_sum), ("gradient", self._norm_sum), ("weights", weights)):
            self._refuse_infinite(what, total.item())

    def _refuse_infinite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"expected finite numbers, got {value} in the {what} by step {self.progress.step}: the run has "
                f"diverged; lower learning_rate (now {self.config.learning_rate:g}) or grad_clip "
                f"(now {self.config.grad_clip}); the last good checkpoint, if one was written, is kept"
            )
