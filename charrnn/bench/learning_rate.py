"""The learning-rate range test: raise the rate at each step and watch the loss (Smith, 2015, arXiv:1506.01186).

While the rate is too small, the loss hardly changes; then it falls; at last it diverges. The rate at which it falls
most steeply is a good peak for a schedule.
"""

import argparse
import copy
import math
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F

from charrnn.bench.processes import with_bar
from charrnn.bench.report import Report, Row, Table, add_config_file
from charrnn.config import BUDGETS, RunConfig, config_fields
from charrnn.data.streams import Batch, CharDataset, DocumentDataset
from charrnn.device import autocast, seeded_step
from charrnn.errors import ConfigError
from charrnn.models.recurrent import CharModel
from charrnn.models.state import begin_rows, detach_state
from charrnn.training.optimizers import build_optimizers, clip_gradients
from charrnn.training.run import Run

LARGEST = 4.0  # a loss above this multiple of the lowest has diverged
CONFIG_FLAGS = {name for _, _, name, _ in config_fields()} - set(BUDGETS)
FIGURE = "plot_learning_rate"
COLUMNS = {"learning rate": "{rate:.2g}", "loss": "{loss:.3f}", "smoothed": "{smoothed:.3f}"}


def range_test(run: Run, low: float = 1e-5, high: float = 1.0, steps: int = 200) -> Row:
    """Train a copy of a run's model while the learning rate grows geometrically from `low` to `high`.

    It ends early when a loss exceeds 4 times the lowest so far or is not finite. The optimizer is the configured one;
    the rates of other parameter groups, such as Muon's, stay in proportion. The run itself does not change.

    Args:
        run: not yet started; its precision is fp32 unless bf16 is configured.
        low: the first rate.
        high: the last rate.
        steps: updates, at least 2.

    Returns:
        `rates`, `losses` (nats per token, each before the update at its rate), `smoothed` (the losses), and
        `suggested`, see `suggest`.

    Raises:
        ConfigError: rates or steps out of range.
    """
    if not 0 < low < high < math.inf:
        raise ConfigError(f"--low: expected a rate above 0 and below --high, {high:g}, got {low:g}")
    if steps < 2:
        raise ConfigError(f"--steps: expected at least 2, got {steps}")
    trainer = run.trainer
    model = copy.deepcopy(trainer.model).train()
    asked = run.config.device
    model.backend = model.backends[0] if asked.backend == "auto" else asked.backend
    rates = np.geomspace(low, high, steps).tolist()
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        losses = list(_losses(model, run, rates))
    rates = rates[: len(losses)]
    smoothed = smooth(losses)
    return {"rates": rates, "losses": losses, "smoothed": smoothed, "suggested": suggest(rates, smoothed)}


def _losses(model: CharModel, run: Run, rates: Sequence[float]) -> Iterator[float]:
    """The loss at each step, until it diverges."""
    config, device, seed = run.config.training, run.trainer.device, run.config.device.seed
    precision = "bf16" if run.config.device.precision == "bf16" else "fp32"
    optimizers = build_optimizers(model, config)
    windows, lowest = _windows(run.trainer.dataset), math.inf
    state = None
    for step in with_bar(range(len(rates)), "training"):
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


def _windows(dataset: CharDataset | DocumentDataset) -> Iterator[tuple[bool, Batch]]:
    """Windows of one epoch after another, each with whether it begins an epoch."""
    for epoch in count():
        for place, window in enumerate(dataset.windows(epoch)):
            yield place == 0, window


def smooth(losses: Sequence[float]) -> list[float]:
    """The moving average of the losses, over a twentieth of all to either side and fewer at the ends."""
    each_side = max(1, len(losses) // 20)
    return [float(np.mean(losses[max(0, i - each_side) : i + each_side + 1])) for i in range(len(losses))]


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate, before its minimum.

    None if it never falls.
    """
    fall = slice(0, int(np.argmin(smoothed)) + 1 if len(smoothed) else 0)
    if len(smoothed[fall]) < 2:
        return None
    slopes = np.gradient(smoothed[fall], np.log(rates[fall]))
    return float(rates[int(np.argmin(slopes))])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench learning-rate`."""
    add_config_file(parser)
    parser.add_argument("--low", type="positive", default=1e-5, metavar="RATE", help="the first rate")
    parser.add_argument("--high", type="positive", default=1.0, metavar="RATE", help="the last rate")
    parser.add_argument("--steps", type="count", default=200, metavar="N", help="updates")
    parser.add_argument("--out", type="figure_file", metavar="FILE", help="draw the result in a .png or .svg file")


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Run the range test."""
    result = range_test(Run.start(config), arguments.low, arguments.high, arguments.steps)
    rates, losses, smoothed, suggested = result.values()
    places = sorted({round(place) for place in np.linspace(0, len(rates) - 1, 12)})
    rows = [{"rate": rates[place], "loss": losses[place], "smoothed": smoothed[place]} for place in places]
    notes = []
    if len(rates) < arguments.steps:
        notes = [f"ended after {len(rates)} of {arguments.steps} steps, when the loss had diverged"]
    said = "The loss never falls: nothing to suggest."
    if suggested is not None:
        said = f"Suggested learning rate: {suggested:.2g}, where the smoothed loss falls most steeply."
    table = Table("loss while the learning rate grows, nats per token", rows, COLUMNS)
    return Report(result, [table], notes, [said])
