"""The training loop, as a generator of events.

    for event in Trainer(model, train, val, config):
        match event: ...

Truncated backpropagation through time (Williams & Peng, 1990): the state is carried from window to window and cut from
the graph in between; it starts from zeros at the beginning of each epoch.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charrnn.config import ConfigError, DeviceConfig, TrainingConfig
from charrnn.corpus import CharDataset, Tokens, Window
from charrnn.device import (
    autocast,
    check_precision,
    keep_freed_memory,
    seed_step,
    select_device,
    select_fastest,
    set_threads,
)
from charrnn.models import CharModel, State, detach_state, flatten_state, map_state, unflatten_state

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
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """The whole validation split was read."""

    step: int
    epoch: float
    seconds: float
    loss: float  # nats per token
    best: bool  # the lowest ever, across resumes


@dataclass(frozen=True)
class SaveDue:
    """A good moment to write a checkpoint to resume from: the weights are known to be finite."""

    step: int
    epoch: float
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The budget is used up, or `stop` was called; nothing comes after."""

    step: int
    epoch: float
    seconds: float
    best_loss: float | None  # None where nothing was evaluated
    stopped: bool


Event = Stepped | Logged | Evaluated | SaveDue | Finished
Monitor = Callable[[Event], None]


class DivergedError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


@dataclass
class Progress:
    """Where a run stands; with the weights, the optimizer and the state, all that resuming needs."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # tokens of each stream read in this epoch
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
    memory that it frees, see `device.keep_freed_memory`.

    Args:
        model: trained in place, moved to `device`.
        train: token ids `(N,)` to learn from.
        val: token ids to evaluate on; fewer than two are never evaluated.
        config: budgets, sizes and rates.
        device: where, how precisely and from which seed.
        log_interval: steps between `Logged` events.

    Raises:
        CorpusError: `train` is too short.
        ConfigError: `device` is not on this machine, or cannot compute in that precision; no such backend for `model`.
    """

    def __init__(
        self,
        model: CharModel,
        train: Tokens,
        val: Tokens,
        config: TrainingConfig | None = None,
        device: DeviceConfig | None = None,
        log_interval: int = 100,
    ):
        self.config = config or TrainingConfig()
        self.log_interval = log_interval
        self.progress = Progress()
        self._device_config = device or DeviceConfig()
        self.device = select_device(self._device_config.device)
        check_precision(self._device_config.precision, self.device)
        if self._device_config.backend not in ("auto", *model.backends):
            raise ConfigError(
                f"device.backend (--backend): expected auto, {' or '.join(model.backends)} for this model, "
                f"got {self._device_config.backend!r}"
            )
        self.model = model.to(self.device)
        self.dataset = CharDataset(
            train, self.config.batch_size, self.config.seq_length, self._device_config.seed, "the training split"
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.val = val
        self._state: State = None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=False)
        self._stop = False

    def fit(self, *monitors: Monitor) -> None:
        """Run to the end of the budget, telling every event to every monitor."""
        for event in self:
            for monitor in monitors:
                monitor(event)

    def stop(self) -> None:
        """End at the next step, with a `SaveDue` and a `Finished`; safe to call from a signal handler or a monitor."""
        self._stop = True

    def __iter__(self) -> Iterator[Event]:
        """Events of a run; raises DivergedError when the loss or the gradient is no longer finite."""
        before = self.model.backend
        self._start()
        try:
            yield from self._run()
        finally:
            self.model.backend = before  # what trains fastest need not be what writes fastest

    def _run(self) -> Iterator[Event]:
        progress = self.progress
        if not self._done():
            yield from self._due()  # at step 0, and where a caller broke out before it was told
        while not self._done():
            for window in self.dataset.windows(progress.epoch, progress.position):
                self._update(window)
                yield from self._report()
                if self._done():
                    break
            else:  # the next epoch reads the text from its beginning
                progress.epoch, progress.position, self._state = progress.epoch + 1, 0, None
        yield from self._due(now=not self._stop, save=True)
        yield Finished(progress.step, self.epoch, progress.seconds, progress.best_loss, stopped=self._stop)

    @property
    def epoch(self) -> float:
        """Passes over the training split so far, with the fraction of the present one."""
        return self.progress.epoch + self.progress.position / self.dataset.stream_length

    def share_used(self) -> float:
        """Share of the budget that is used up, 0 … 1; of several budgets the one nearest its end."""
        spent = {"max_steps": self.progress.step, "max_epochs": self.epoch, "max_seconds": self.progress.seconds}
        budgets = {name: getattr(self.config, name) for name in spent}
        return min(1.0, max(spent[name] / budget for name, budget in budgets.items() if budget is not None))

    # ------------------------------------------------------------------------------------------- to stop and go on

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs beside the weights and `progress`: the optimizer's memory and the carried state."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors = {
            f"optimizer.{names[parameter]}.{key}": value
            for parameter, memory in self.optimizer.state.items()
            for key, value in memory.items()
        }
        return tensors | {f"state.{key}": value for key, value in flatten_state(self._state).items()}

    def restore(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from where another trainer of the same model was when it gave its `progress` and `tensors`.

        A precision or backend that was asked for, not `auto`, replaces the one that the run had.
        """
        self.progress = Progress(**progress)
        self.progress.history = [tuple(evaluation) for evaluation in self.progress.history]
        for name in ("precision", "backend"):
            if getattr(self._device_config, name) not in ("auto", getattr(self.progress, name)):
                setattr(self.progress, name, None)
        index = {name: i for i, (name, _) in enumerate(self.model.named_parameters())}
        dtype = next(self.model.parameters()).dtype  # autocast may have left the state in half precision
        memory: dict[int, dict[str, Tensor]] = {}
        state = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "state":
                state[rest] = value.to(self.device, dtype)
            else:
                name, _, entry = rest.rpartition(".")
                memory.setdefault(index[name], {})[entry] = value.clone()
        self._state = unflatten_state(state)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": memory})

    # -------------------------------------------------------------------------------------------------- one step

    def _start(self) -> None:
        self._stop = False
        progress = self.progress
        set_threads(self._device_config.threads)
        keep_freed_memory()
        if progress.device != self.device.type:
            progress.precision = progress.backend = None
        if progress.precision is None or progress.backend is None:
            known = {name: getattr(progress, name) for name in ("precision", "backend") if getattr(progress, name)}
            asked = self._device_config.model_copy(update=known)
            progress.backend, progress.precision = select_fastest(asked, self.device, self.model.backends, self._try)
        progress.device = self.device.type
        self.model.backend = progress.backend
        if progress.precision == "fp16" and not self._scaler.is_enabled():
            self._scaler = torch.amp.GradScaler(self.device.type)
            self._scaler.load_state_dict(progress.loss_scale or self._scaler.state_dict())
        self._started = time.perf_counter() - progress.seconds
        self._clear_means()

    def _done(self) -> bool:
        return self._stop or self.share_used() >= 1

    def _update(self, window: Window) -> None:
        begin = time.perf_counter()
        config, progress = self.config, self.progress
        seed_step(self.device, self._device_config.seed, progress.step)
        self.model.train()
        loss, self._state = self._loss(window.inputs, window.targets, progress.precision)
        # every token weighs the same, so a window cut short at an epoch's border pulls less
        weight = window.inputs.numel() / (self.dataset.batch_size * config.seq_length)
        self._scaler.scale(loss * weight).backward()
        self._scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self._rate = config.learning_rate * scheduled(self.share_used(), config.warmup_frac, config.hold_frac)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()

        progress.step += 1
        progress.position = window.end
        progress.seconds = time.perf_counter() - self._started
        self._loss_sum += loss.detach() * window.inputs.numel()
        # a scaled gradient that overflows is the scaler's business: it skips that step and lowers the scale
        self._norm_sum += grad_norm.nan_to_num(0, 0, 0) if self._scaler.is_enabled() else grad_norm
        self._tokens += window.inputs.numel()
        self._steps += 1
        self._busy += time.perf_counter() - begin

    def _loss(self, inputs: Tensor, targets: Tensor, precision: str) -> tuple[Tensor, State]:
        """Mean nats per token of a window `(B, T)`, and the state to carry on."""
        with autocast(self.device, precision):
            logits, state = self.model(inputs.to(self.device), self._state)  # (B, T, V)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.to(self.device).flatten())
        return loss, detach_state(state)

    def _try(self, backend: str, precision: str) -> None:
        """The costly part of a step on made-up tokens, to be timed; leaves nothing behind."""
        self.model.backend = backend
        self.model.train()
        tokens = torch.zeros(self.dataset.batch_size, self.config.seq_length, dtype=torch.int64)
        loss, _ = self._loss(tokens, tokens, precision)
        loss.backward()
        self.optimizer.zero_grad()

    # --------------------------------------------------------------------------------------------- what it tells

    def _report(self) -> Iterator[Event]:
        yield Stepped(self.progress.step, self.epoch, self.progress.seconds, self.share_used())
        if self.progress.step % self.log_interval == 0 or self._done():
            yield self._log()
        if not self._done():  # at the end the last evaluation comes before the last save
            yield from self._due()

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
        begin = time.perf_counter()
        self._check_finite()
        loss, norm = self._loss_sum.item() / self._tokens, self._norm_sum.item() / self._steps
        self._busy += time.perf_counter() - begin  # a GPU's work ends only here
        speed = self._tokens / self._busy
        self._clear_means()
        return Logged(self.progress.step, self.epoch, self.progress.seconds, loss, norm, self._rate, speed)

    def _evaluate(self) -> Evaluated:
        progress = self.progress
        self._check_finite()
        loss = evaluate(self.model, self.val)
        best = progress.best_loss is None or loss < progress.best_loss
        if best:
            progress.best_loss = loss
        progress.seconds = time.perf_counter() - self._started
        progress.evaluated_at = progress.step
        progress.history.append((progress.step, self.epoch, loss))
        if progress.saved_at == progress.step:
            progress.saved_at -= 1  # that checkpoint does not know this loss: it is due again
        return Evaluated(progress.step, self.epoch, progress.seconds, loss, best)

    def _save_due(self) -> SaveDue:
        self._check_finite()
        self.progress.saved_at = self.progress.step
        self.progress.loss_scale = self._scaler.state_dict() or None
        return SaveDue(self.progress.step, self.epoch, self.progress.seconds)

    def _check_finite(self) -> None:
        """Asked when something is told, not at every step: to read a number is to wait for the GPU."""
        weights = torch.stack([parameter.detach().sum() for parameter in self.model.parameters()]).sum()
        for what, total in (("loss", self._loss_sum), ("gradient", self._norm_sum), ("weights", weights)):
            if not math.isfinite(total.item()):
                raise DivergedError(
                    f"expected finite numbers, got {total.item()} in the {what} by step {self.progress.step}: the run "
                    f"has diverged; lower learning_rate (now {self.config.learning_rate:g}) or grad_clip "
                    f"(now {self.config.grad_clip:g}); the last good checkpoint, if one was written, is kept"
                )


def scheduled(share: float, warmup_frac: float, hold_frac: float) -> float:
    """Learning rate as a share of its peak, when `share` of the budget is used up.

    It climbs linearly from a tenth to the peak, stays there, and falls to 0 as half a cosine (Loshchilov & Hutter,
    2017, arXiv:1608.03983).
    """
    if share < warmup_frac:
        return 0.1 + 0.9 * share / warmup_frac
    fall_begins = warmup_frac + hold_frac
    if share <= fall_begins:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (share - fall_begins) / (1 - fall_begins)))


# -------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(
    model: CharModel,
    tokens: Tokens,
    streams: int | None = None,
    warmup: int = 256,
    progress: Callable[[range], Iterable[int]] = iter,
) -> float:
    """Mean loss in nats per token over all of `tokens`, dropout off, in fp32, state carried.

    The split is read as contiguous streams side by side. Each but the first starts with the state left by the `warmup`
    tokens before it, so that the result is, to about 1e-3, that of one pass from beginning to end. How many streams
    there are depends on the split alone: training settings do not change the number.

    Args:
        model: on any device; its mode is restored whatever happens.
        tokens: ids `(N,)`, N at least 2.
        streams: read that many side by side; None is one for each 2048 tokens, at most 64.
        warmup: tokens read before a stream to prime its state.
        progress: wraps the loop, as `tqdm` does, to show how far it is.

    Raises:
        ValueError: fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"expected at least 2 tokens to evaluate on, got {len(tokens)}; use a longer text or split")
    streams = streams or min(64, max(1, len(tokens) // 2048))
    length = math.ceil((len(tokens) - 1) / streams)
    device = next(model.parameters()).device
    chunk = max(1, min(256, 2**24 // (streams * model.vocab_size)))  # bounds the logits to 64 MiB
    was_training = model.training
    model.eval()
    try:
        state = None
        if streams > 1:
            for start in range(max(0, length - warmup), length, chunk):  # the end of a row comes before the row below
                inputs = _rows(tokens, streams - 1, length, start, min(start + chunk, length)).to(device)
                _, state = model(inputs, state)
            state = map_state(lambda tensor: F.pad(tensor, (0, 0, 1, 0)), state)  # the first row starts from zeros
        total = 0.0
        for start in progress(range(0, length, chunk)):
            end = min(start + chunk, length)
            inputs = _rows(tokens[:-1], streams, length, start, end).to(device)  # (S, chunk)
            targets = _rows(tokens[1:], streams, length, start, end, padding=-100).to(device)  # it ignores -100
            logits, state = model(inputs, state)  # (S, chunk, V)
            total += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
        return total / (len(tokens) - 1)
    finally:
        model.train(was_training)


def _rows(tokens: Tokens, rows: int, length: int, start: int, end: int, padding: int = 0) -> Tensor:
    """Columns `start` to `end` of `tokens` laid out in rows of `length`, padded where the tokens end."""
    columns = np.full((rows, end - start), padding, dtype=np.int64)
    for row in range(rows):
        part = tokens[row * length + start : row * length + end]
        columns[row, : len(part)] = part
    return torch.from_numpy(columns)
