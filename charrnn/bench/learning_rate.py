"""The learning-rate range test: let the rate grow at each step and watch the loss (Smith, 2015, arXiv:1506.01186).

While the rate is too small the loss hardly moves; then it falls; at last it climbs away. The rate at which it falls
most steeply is a good peak for a schedule.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from charrnn.data.streams import Batch, CharDataset
from charrnn.device import autocast, seeded_step
from charrnn.models.recurrent import CharModel
from charrnn.models.state import begin_rows, detach_state
from charrnn.training.optimizers import build_optimizers, clip_gradients
from charrnn.training.run import Run

LARGEST = 4.0  # times its lowest, and a loss has climbed away


def range_test(
    run: Run,
    low: float = 1e-5,
    high: float = 1.0,
    steps: int = 200,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Train a copy of a run's model while the learning rate grows geometrically from `low` to `high`.

    It ends early when a loss exceeds 4 times the lowest so far or is not finite. The optimizer is the configured one;
    the rates of other parameter groups, as Muon's, stay in proportion. The run itself is left as it is.

    Args:
        run: not yet started; its precision is fp32 unless another is asked for.
        low: the first rate.
        high: the last rate.
        steps: updates, at least 2.
        progress: wraps the loop over the steps, as `tqdm` does.

    Returns:
        `rates`, `losses` (nats per token, each read before the step of its rate), `smoothed` (the losses), and
        `suggested`, see `suggest`, or None.

    Raises:
        ValueError: rates or steps out of range.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"expected a low rate above 0 and a higher one, got {low:g} and {high:g}")
    if steps < 2:
        raise ValueError(f"expected at least 2 steps, got {steps}")
    trainer = run.trainer
    model = copy.deepcopy(trainer.model).train()
    asked = run.config.device
    model.backend = model.backends[0] if asked.backend == "auto" else asked.backend
    rates = np.geomspace(low, high, steps).tolist()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        losses = list(_losses(model, run, rates, progress))
    rates = rates[: len(losses)]
    smoothed = smooth(losses)
    return {"rates": rates, "losses": losses, "smoothed": smoothed, "suggested": suggest(rates, smoothed)}


def _losses(
    model: CharModel, run: Run, rates: Sequence[float], progress: Callable[[Iterable[int]], Iterable[int]]
) -> Iterator[float]:
    """The loss at each step, until it climbs away."""
    config, device, seed = run.config.training, run.trainer.device, run.config.device.seed
    precision = "bf16" if run.config.device.precision == "bf16" else "fp32"
    optimizers = build_optimizers(model, config)
    windows, lowest = _windows(run.trainer.dataset), math.inf
    state = None
    for step in progress(range(len(rates))):
        begins, window = next(windows)
        state = None if begins else begin_rows(state, window.begins)
        with seeded_step(device, seed, step), autocast(device, precision):
            logits, state = model(window.inputs.to(device), state)  # (B, T, V)
        loss = F.cross_entropy(logits.float().flatten(0, 1), window.targets.to(device).flatten())
        value, state = loss.item(), detach_state(state)
        if not math.isfinite(value) or value > LARGEST * lowest:
            return
        lowest = min(lowest, value)
        yield value
        loss.backward()
        clip_gradients(model, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rates[step] * group["peak"] / config.learning_rate
            optimizer.step()
            optimizer.zero_grad()


def _windows(dataset: CharDataset) -> Iterator[tuple[bool, Batch]]:
    """Windows of one epoch after another, and whether an epoch begins."""
    for epoch in count():
        for place, window in enumerate(dataset.windows(epoch)):
            yield place == 0, window


def smooth(losses: Sequence[float]) -> list[float]:
    """Each loss as the mean of those around it: a twentieth of all to either side, fewer at the ends."""
    each_side = max(1, len(losses) // 20)
    return [float(np.mean(losses[max(0, i - each_side) : i + each_side + 1])) for i in range(len(losses))]


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate, before its lowest point.

    None where it never falls.
    """
    fall = slice(0, int(np.argmin(smoothed)) + 1 if len(smoothed) else 0)
    if len(smoothed[fall]) < 2:
        return None
    slopes = np.gradient(smoothed[fall], np.log(rates[fall]))
    return float(rates[int(np.argmin(slopes))])
