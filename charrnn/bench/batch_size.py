"""Find the best batch size here: train each for the same seconds from the same seed, then evaluate.

A larger batch keeps the machine busier, so it reads more characters per second, but it makes fewer updates from them.
Which effect is larger depends on machine, network, text and time.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from charrnn.bench.processes import answer, measure_apart, peak_bytes, with_bar
from charrnn.bench.recorder import Recorder
from charrnn.bench.report import Report, Row, Table, add_config_file, add_seconds
from charrnn.config import BUDGETS, RunConfig, config_fields, parse_config
from charrnn.data.corpus import load_corpus
from charrnn.device import is_out_of_memory
from charrnn.errors import ConfigError, CorpusError, DivergedError, MeasurementError
from charrnn.training.run import Run

CONFIG_FLAGS = {name for _, _, name, _ in config_fields()} - {"batch_size", *BUDGETS}
COLUMNS = {
    "batch size": "{batch_size:,}",
    "learning rate": "{learning_rate:.2g}",
    "characters/s": "{speed:,.0f}",
    "steps": "{steps:,}",
    "peak memory": "{peak_bytes:MB}",
    "validation loss": "{val_loss:.4f}",
}
SIZES = (16, 32, 64, 128, 256, 512, 1024)
SCALINGS: dict[str, float] = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # power of the batch size
RATES = ("learning_rate", "muon_learning_rate")
NEVER = 2**40  # steps


def sized(config: RunConfig, batch_size: int, seconds: float, scaling: str = "none") -> RunConfig:
    """Change `config` to this batch size, to be trained for this time and evaluated once, at the end.

    Args:
        config: its learning rates are those for its own batch size.
        batch_size: streams.
        seconds: of training.
        scaling: a key of `SCALINGS`: multiply the learning rates by nothing, by the square root of the ratio of the
            batch sizes, or by the ratio.
    """
    factor = (batch_size / config.training.batch_size) ** SCALINGS[scaling]
    rates = {name: getattr(config.training, name) * factor for name in RATES}
    return config.override({"batch_size": batch_size, "max_seconds": seconds, "eval_interval": NEVER, **rates})


def measure(config: dict[str, Any]) -> Row:
    """Train a run, given as nested dictionaries.

    Returns:
        `speed` in characters per second, `steps`, `val_loss` in nats per token (None without a validation split) and
        `peak_bytes` of memory (None if unknown); or only `skipped`, the reason why it could not be trained.
    """
    run_config = parse_config(config)
    try:
        run = Run.start(run_config)
        dataset = run.trainer.dataset
        if dataset.batch_size < run_config.training.batch_size:
            return {"skipped": f"the training split is too short: room for {dataset.batch_size} streams"}
        recorder = Recorder(run.trainer)
        run.fit(recorder)
    except (CorpusError, DivergedError) as error:
        return {"skipped": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"skipped": "out of memory"}
    return {
        "speed": recorder.tokens / recorder.seconds * run.corpus.characters / len(run.corpus.tokens),
        "steps": run.trainer.progress.step,
        "val_loss": next(iter(recorder.curve["val_loss"]), None),
        "peak_bytes": _peak_bytes(run.trainer.device),
    }


def _peak_bytes(device: torch.device) -> int | None:
    """Peak memory: on a GPU that of the tensors, on the CPU that of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes() if device.type == "cpu" else None


def sweep(config: RunConfig, sizes: Sequence[int] = SIZES, seconds: float = 10.0, scaling: str = "none") -> list[Row]:
    """Train with each batch size, each in its own process, so that one may run out of memory without ending the rest.

    Args:
        config: all settings except the batch size and the budget.
        sizes: batch sizes.
        seconds: of training for each.
        scaling: of the learning rates, see `sized`.

    Returns:
        For each size a row: `batch_size`, `learning_rate`, and the result of `measure`.

    Raises:
        ConfigError: the text comes from standard input, which can be read only once.
        CorpusError: the text cannot be read.
    """
    if config.data.name == "-":
        raise ConfigError("data.name (--data): expected a text that can be read several times, got standard input")
    load_corpus(config.data)  # prepared once, for all of them
    rows = []
    for size in with_bar(sizes, "training"):
        run_config = sized(config, size, seconds, scaling)
        try:
            result = measure_apart(__name__, config=run_config.model_dump())
        except MeasurementError as error:
            result = {"skipped": str(error)}
        rows.append({"batch_size": size, "learning_rate": run_config.training.learning_rate, **result})
    return rows


def best_of(rows: Sequence[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """The fastest batch size, and the one with the lowest loss after equal time; None if it was not measured."""
    measured = [row for row in rows if "skipped" not in row]
    evaluated = [row for row in measured if row["val_loss"] is not None]
    fastest = max(measured, key=lambda row: row["speed"], default={"batch_size": None})
    best = min(evaluated, key=lambda row: row["val_loss"], default={"batch_size": None})
    return fastest["batch_size"], best["batch_size"]


def conclusion(rows: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """The result in a sentence."""
    fastest, best = best_of(rows)
    if fastest is None:
        return "No batch size could be trained."
    by_size = {row["batch_size"]: row for row in rows}
    said = f"Batch size {fastest} is the fastest, {by_size[fastest]['speed']:,.0f} characters per second"
    if best is None:
        return f"{said}; without a validation split nothing says which is the best."
    loss = f"{by_size[best]['val_loss']:.4f} nats per token"
    if best == fastest:
        return f"{said}, and the best after {seconds:g} s: {loss}."
    return f"{said}; the best after {seconds:g} s is {best}, {loss}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench batch-size`."""
    add_config_file(parser)
    parser.add_argument("--sizes", nargs="+", type="count", default=list(SIZES), metavar="B", help="batch sizes")
    add_seconds(parser, 10.0, "seconds of training for each size")
    about = "scale the learning rate from the configured batch size to each of the others"
    parser.add_argument("--scale", choices=list(SCALINGS), default="none", help=about)


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare the batch sizes."""
    rows = sweep(config, arguments.sizes, arguments.seconds, arguments.scale)
    fastest, best = best_of(rows)
    value = {"sizes": rows, "fastest": fastest, "best": best, "scale": arguments.scale}
    skipped = [f"batch size {row['batch_size']} skipped: {row['skipped']}" for row in rows if "skipped" in row]
    how = {"none": "the same for all", "sqrt": "scaled with the root of the batch size", "linear": "scaled with it"}
    said = f"{conclusion(rows, arguments.seconds)} The learning rate was {how[arguments.scale]}."
    return Report(value, [Table(f"{arguments.seconds:g} s of training each", rows, COLUMNS)], skipped, [said])


if __name__ == "__main__":
    answer(measure)
