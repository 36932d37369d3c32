"""The training loop, as a generator of events.

    for event in Trainer(model, train, val, config):
        match event: ...

Truncated backpropagation through time (Williams & Peng, 1990): the state is carried from window to window and detached
in between. It starts from zeros at the beginning of each epoch, and of each document if the text consists of documents.
"""

import copy
import math
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
from charrnn.training.optimizers import build_optimizers, clip_gradients, combine
from charrnn.training.schedules import evaluations_since_best, rate_factor
from charrnn.training.stopwatch import Stopwatch
from charrnn.types import Tokens


@dataclass
class Progress:
    """The position of a run. Resuming needs this, the weights, the optimizer's state and the model's state."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # tokens of each stream read in this epoch; with documents, tokens of all of them
    seconds: float = 0.0
    evaluated_at: int = 0  # step of the last evaluation
    saved_at: int = -1  # step of the last CheckpointDue event
    best_loss: float | None = None
    history: list[tuple[int, float, float]] = field(default_factory=list)  # step, epoch and loss of each evaluation
    precision: str | None = None  # chosen once and kept for the whole run
    backend: str | None = None  # likewise
    device: str | None = None  # the type of device that they were chosen for
    loss_scale: dict[str, Any] | None = None  # state of the loss scaler in fp16


class Trainer:
    """Trains `model` and reports what happens.

    Iterating yields events. `break` is safe at any of them; iterating again continues at the next step. The random
    numbers of a step depend only on the seed and the step's number. From the first step on the process keeps the memory
    that it frees, see `device.keep_freed_memory`. With torchrun every rank has a trainer, see `distributed`.

    Args:
        model: trained in place, moved to `device`.
        train: token ids `(N,)` to train on.
        val: token ids to evaluate on; with fewer than two, nothing is evaluated.
        config: budgets, sizes and rates.
        device: device, precision, backend and seed.
        log_interval: steps between `Logged` events.
        to_bpc: converts the loss on `val`, in nats per token, into bits per character.
        end: id of the end token that stands before, between and after the documents of `train` and `val`; None if they
            are one text each.

    Attributes:
        ema_model: with `ema_decay`, a model whose weights are the moving average of the trained ones, else None.

    Raises:
        CorpusError: `train` is too short.
        ConfigError: this machine lacks `device`, or the device the precision, or `model` the backend; the streams
            cannot be split evenly over the ranks; documents with a `seq_length_start`.

    Warns:
        UserWarning: there are fewer streams or documents than `batch_size`, or half of the computation is padding.
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
        self.config, self._device_config = config or TrainingConfig(), device or DeviceConfig()
        self.log_interval, self.val, self.to_bpc, self._end = log_interval, val, to_bpc, end
        self.device = select_device(self._device_config.device)
        check_precision(self._device_config.precision, self.device)
        distributed.check_device(self.device)
        self.model = model.to(self.device)
        backend = self._device_config.backend
        if backend not in ("auto", *model.known_backends()):
            why = "; it is for an LSTM on a CPU and needs numba: pip install numba" if backend == "numba" else ""
            raise ConfigError(
                f"device.backend (--backend): expected auto, {' or '.join(model.backends)} for this model here, "
                f"got {backend!r}{why}"
            )
        self.dataset = self._dataset(train)
        if self.dataset.batch_size % distributed.world_size():
            raise ConfigError(
                f"training.batch_size (--batch-size): expected a multiple of the {distributed.world_size()} processes, "
                f"got {self.dataset.batch_size}"
            )
        self.optimizers = build_optimizers(self.model, self.config)
        self._optimizer = combine(self.optimizers)
        self.ema_model = copy.deepcopy(self.model).requires_grad_(False) if self.config.ema_decay else None
        self.progress = Progress()
        self._state: State = None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self._stop = self._asked_to_stop = False
        self._iteration: Callable[[], Generator[Event] | None] = lambda: None
        self._reset_means()

    def _dataset(self, train: Tokens) -> CharDataset | DocumentDataset:
        config, seed, name = self.config, self._device_config.seed, "the training split"
        sizes = config.batch_size, config.seq_length
        if self._end is None:
            return CharDataset(train, *sizes, seed, name, config.seq_length_start, config.seq_length_warmup_epochs)
        if config.seq_length_start is not None:
            raise ConfigError(
                "training.seq_length_start (--seq-length-start): expected null for documents, whose windows vary"
            )
        dataset = DocumentDataset(train, *sizes, self._end, seed, name)
        if dataset.batch_size < config.batch_size:
            warnings.warn(f"{name}: {dataset.documents} documents, so batch_size is {dataset.documents}", stacklevel=3)
        if dataset.padding > 0.5:
            warnings.warn(
                f"{name}: {dataset.padding:.0%} of each step is padding, because {dataset.batch_size} documents side "
                "by side differ too much in length; lower batch_size",
                stacklevel=3,
            )
        return dataset

    @property
    def evaluated_model(self) -> CharModel:
        """The model that is evaluated and saved: the moving average of the weights if there is one."""
        return self.model if self.ema_model is None else self.ema_model

    # -------------------------------------------------------------------------------------------------- the loop

    def fit(self, *callbacks: Callback) -> None:
        """Run to the end of the budget and pass every event to every callback."""
        with closing(iter(self)) as events:  # an error in a callback ends the iteration at once
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

        There is one iteration at a time: a new one closes the one before, which a traceback may keep alive.
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
            self.model.backend = before  # the fastest for training need not be the fastest for sampling
            self._stop = self._asked_to_stop = False

    def _run(self) -> Iterator[Event]:
        progress = self.progress
        yield from self._due()  # at step 0, and after a `break` that came before these events
        while not self._ends():
            rows = distributed.local_rows(self.dataset.batch_size)
            for batch in self.dataset.windows(progress.epoch, progress.position, self.device, rows):
                self._update(batch)
                yield Stepped(*self._now(), self.share_used())
                yield from self._due()
                if self._ends():
                    break
            else:  # the next epoch starts at the beginning of the text
                progress.epoch, progress.position, self._state = progress.epoch + 1, 0, None
        yield from self._due(last=True)
        early = self.share_used() < 1 and self.out_of_patience() and not self._stop
        yield Finished(*self._now(), progress.best_loss, self._stop, early)

    def _due(self, last: bool = False) -> Iterator[Event]:
        """Log, evaluate and save, each if this step or the `last` one calls for it and it has not been done yet."""
        progress, config = self.progress, self.config
        if self._steps and (progress.step % self.log_interval == 0 or self._ends()):
            yield self._log()
        if self._ends() and not last:
            return
        evaluating = progress.step % config.eval_interval == 0 or (last and not self._stop)
        if evaluating and progress.evaluated_at < progress.step and len(self.val) > 1:
            yield self._evaluate()
        if (last or progress.step % config.save_interval == 0) and progress.saved_at < progress.step:
            yield self._save()

    @property
    def epoch(self) -> float:
        """Passes over the training split so far, including the fraction of the current one."""
        return self.progress.epoch + self.progress.position / self.dataset.stream_length

    def share_used(self) -> float:
        """Share of the budget used, 0 … 1; of several budgets the one nearest its end."""
        budgets = self.config.max_steps, self.config.max_epochs, self.config.max_seconds
        used = zip(self._now(), budgets, strict=True)
        return min(1.0, max(amount / budget for amount, budget in used if budget is not None))

    def done(self) -> bool:
        """True if nothing is left to do: the budget is used up, or the patience is exhausted."""
        return self.share_used() >= 1 or self.out_of_patience()

    def out_of_patience(self) -> bool:
        """True if the last `patience` evaluations have brought no better loss."""
        patience = self.config.patience
        return patience is not None and evaluations_since_best(self._losses(), self.config.min_delta) >= patience

    def _ends(self) -> bool:
        return self._stop or self.done()

    def _losses(self) -> list[float]:
        return [loss for _, _, loss in self.progress.history]

    def _now(self) -> tuple[int, float, float]:
        """The first three fields of every event."""
        return self.progress.step, self.epoch, self.progress.seconds

    # ------------------------------------------------------------------------------------------- save and resume

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that `load_state_dict` needs beside `progress` and the weights of `evaluated_model`.

        They are the optimizer's state, the model's state (with several ranks, as of the last `CheckpointDue`) and,
        with an `ema_model`, the trained weights.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors = {
            f"optimizer.{names[parameter]}.{key}": value
            for optimizer in self.optimizers
            for parameter, memory in optimizer.state.items()
            for key, value in memory.items()
        }
        if self.ema_model is not None:
            tensors |= {f"weights.{name}": parameter.detach() for parameter, name in names.items()}
        state = self._state if distributed.world_size() == 1 else self._gathered
        return tensors | {f"state.{key}": value for key, value in flatten_state(state).items()}

    def load_state_dict(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from where another trainer of the same model stood, given its `progress` and `state_dict`.

        A precision or backend in the configuration that is not `auto` replaces the one that the run had.
        """
        self._reset_means()
        self.progress = Progress(**progress)
        self.progress.history = [(step, epoch, loss) for step, epoch, loss in self.progress.history]
        for name in ("precision", "backend"):
            if getattr(self._device_config, name) not in ("auto", getattr(self.progress, name)):
                setattr(self.progress, name, None)
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "weights": {}, "state": {}}
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = value.to(self.device)
        if self.ema_model is not None:
            self.ema_model.load_state_dict(self.model.state_dict())
        self.model.load_state_dict(parts["weights"], strict=False)  # tied weights have one name here
        dtype = next(self.model.parameters()).dtype  # autocast may have left the state in half precision
        rows = distributed.local_rows(self.dataset.batch_size)
        self._state = unflatten_state({key: value[rows].to(dtype) for key, value in parts["state"].items()})
        self._load_optimizers(parts["optimizer"])

    def _load_optimizers(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore each optimizer's state from `tensors`, named after a parameter and an entry of its state."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        memory: dict[str, dict[str, Tensor]] = {name: {} for name in names.values()}
        for key, value in tensors.items():
            name, _, entry = key.rpartition(".")
            memory[name][entry] = value.clone()
        for optimizer in self.optimizers:
            parameters = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            state = {i: memory[name] for i, name in enumerate(parameters) if memory[name]}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self._optimizer = combine(self.optimizers)

    # -------------------------------------------------------------------------------------------------- one step

    def _start(self) -> None:
        """Choose backend and precision, and prepare the model for the ranks."""
        progress, config, model = self.progress, self._device_config, self.model
        keep_freed_memory()
        if progress.device != self.device.type:
            progress.precision = progress.backend = None
        backend = progress.backend or config.backend
        if backend not in ("auto", model.backend) and backend not in model.backends:
            progress.backend, backend = None, "auto"  # numba does not work on every machine
        if progress.precision is None or progress.backend is None:
            wanted = config.model_copy(update={"backend": backend, "precision": progress.precision or config.precision})
            choices = model.backends if backend == "auto" else (backend,)
            fastest = autotune(wanted, self.device, choices, self._try)
            progress.backend, progress.precision = distributed.broadcast(fastest)
        progress.device, model.backend = self.device.type, progress.backend
        if progress.precision == "fp16" and not self._scaler.is_enabled():
            self._scaler = torch.amp.GradScaler(self.device.type)
            self._scaler.load_state_dict(progress.loss_scale or self._scaler.state_dict())
        self._replica = distributed.wrap_ddp(model, self.device)

    def _try(self, backend: str, precision: str) -> None:
        """Compute the expensive part of a step on made-up tokens, to be timed; change nothing."""
        self.model.backend = backend
        self.model.train()
        rows = distributed.local_rows(self.dataset.batch_size)
        size = (math.ceil((rows.stop - rows.start) / self.config.micro_batches), self.config.seq_length)
        tokens = torch.zeros(size, dtype=torch.int64, device=self.device)
        with seeded_step(self.device, self._device_config.seed, 0):
            objective, _, _ = self._loss(self.model, tokens, tokens, precision=precision)
            objective.backward()
        self.model.zero_grad()

    def _update(self, batch: Batch) -> None:
        begin = self._stopwatch.seconds()
        config, progress = self.config, self.progress
        self.model.train()
        with seeded_step(self.device, self._device_config.seed, progress.step, distributed.rank()):
            self._backward(batch)
        self._scaler.unscale_(self._optimizer)
        grad_norm = clip_gradients(self.model, config)
        factor = rate_factor(config, self.share_used(), self.epoch, self._losses())
        self._rate = config.learning_rate * factor
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self._scaler.step(self._optimizer)
        self._optimizer.zero_grad()
        self._scaler.update()

        progress.step += 1
        progress.position = batch.end
        self._update_ema()
        negated, stop = distributed.all_reduce_max(-self._stopwatch.lap(), self._asked_to_stop)
        progress.seconds -= negated  # the minimum over the ranks, because a suspended one keeps the others waiting
        self._stop = bool(stop)
        # the scaler handles a scaled gradient that overflows: it skips the step and lowers the scale
        self._norm_sum += grad_norm.nan_to_num(0, 0, 0) if self._scaler.is_enabled() else grad_norm
        self._steps += 1
        self._busy += self._stopwatch.seconds() - begin

    def _backward(self, batch: Batch) -> None:
        """Compute the gradient of the mean loss over this rank's streams, in `micro_batches` parts; carry the state."""
        inputs, targets = batch.inputs, batch.targets  # (B, T)
        self._state = begin_rows(self._state, batch.begins)
        # every token has the same weight, so a shorter window at the end of an epoch weighs less
        full, parts = len(inputs) * batch.full, min(self.config.micro_batches, len(inputs))
        replica, states = self._replica, list[State]()
        for part in np.array_split(np.arange(len(inputs)), parts):
            own = slice(part[0], part[-1] + 1)
            state = None if self._state is None else map_state(lambda h, own=own: h[own], self._state)
            last = len(states) == parts - 1  # the ranks average their gradients in the last part only
            with replica.no_sync() if isinstance(replica, DistributedDataParallel) and not last else nullcontext():
                objective, loss, state = self._loss(replica, inputs[own], targets[own], state)
                self._scaler.scale(objective / full).backward()
            states.append(state)
            self._loss_sum += loss
        self._tokens += inputs.numel() if batch.lengths is None else int(batch.lengths.sum())
        self._state = map_state(lambda *h: torch.cat(h), *states)

    def _loss(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, state: State = None, precision: str | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """The objective and the loss in nats, summed over a window `(B, T)` without padding, and the new state."""
        with autocast(self.device, precision or self.progress.precision or "fp32"):
            logits, state = model(inputs, state)  # (B, T, V)
        log_p = F.log_softmax(logits.float().flatten(0, 1), dim=1)  # (B T, V)
        targets, smoothing = targets.flatten(), self.config.label_smoothing
        objective = loss = F.nll_loss(log_p, targets, reduction="sum")  # ignores -100
        if smoothing:
            objective = (1 - smoothing) * loss - smoothing * (log_p.mean(dim=1) * (targets >= 0)).sum()
        return objective, loss.detach(), detach_state(state)

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Update the moving average of the weights; at first it forgets faster, to drop the untrained weights."""
        if self.ema_model is not None:
            step = self.progress.step
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            for mean, parameter in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)

    # ------------------------------------------------------------------------------------------------- reporting

    def _reset_means(self) -> None:
        self._loss_sum, self._norm_sum = torch.zeros(2, device=self.device)
        self._tokens, self._steps, self._busy = 0, 0, 0.0

    def _log(self) -> Logged:
        self._settle()
        sums = self._loss_sum.item(), self._tokens, self._norm_sum.item() / self._steps
        loss, tokens, norm = distributed.all_reduce_mean(*sums)  # with documents, ranks may read different amounts
        speed = distributed.world_size() * tokens / self._busy
        self._reset_means()
        return Logged(*self._now(), loss / tokens, norm, self._rate, speed)

    def _evaluate(self) -> Evaluated:
        progress = self.progress
        self._settle()
        loss = evaluate(self.evaluated_model, self.val, end=self._end) if distributed.rank() == 0 else 0.0
        loss, seconds = distributed.broadcast((loss, self._stopwatch.lap()))
        progress.seconds += seconds
        self._check_finite("validation loss", loss)
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss = loss
        progress.evaluated_at = progress.step
        progress.history.append((progress.step, self.epoch, loss))
        if progress.saved_at == progress.step:
            progress.saved_at -= 1  # that checkpoint lacks this loss, so it is due again
        return Evaluated(*self._now(), loss, best, self.to_bpc(loss) if self.to_bpc else None)

    def _save(self) -> CheckpointDue:
        self._settle()
        self._gathered = distributed.all_gather_rows(self._state)
        self.progress.saved_at = self.progress.step
        self.progress.loss_scale = self._scaler.state_dict() or None
        return CheckpointDue(*self._now())

    def _settle(self) -> None:
        """Wait for a GPU to finish the updates, count the time, and raise DivergedError if a number is not finite.

        This is done before a report and not at every step, because reading a number means waiting for the GPU.
        """
        begin = self._stopwatch.seconds()
        synchronize(self.device)
        self._busy += self._stopwatch.seconds() - begin
        weights = torch.stack([parameter.detach().sum() for parameter in self.model.parameters()]).sum()
        for name, total in (("loss", self._loss_sum), ("gradient", self._norm_sum), ("weights", weights)):
            self._check_finite(name, total.item())

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"expected finite numbers, got {value} in the {name} by step {self.progress.step}: the run has "
                f"diverged; lower learning_rate (now {self.config.learning_rate:g}) or grad_clip "
                f"(now {self.config.grad_clip}); the last good checkpoint, if one was written, is kept"
            )
