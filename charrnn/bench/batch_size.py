"""Which batch size learns most here: each trained for the same seconds from the same seed, then evaluated.

A larger batch keeps the machine busier, so more characters pass in a second; but it makes fewer updates of them. Which
of the two counts more depends on machine, network, text and time, so it is measured.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from charrnn.bench.processes import answer, measure_apart, peak_bytes
from charrnn.bench.recorder import Recorder
from charrnn.config import RunConfig, parse_config
from charrnn.data.corpus import load_corpus
from charrnn.device import is_out_of_memory
from charrnn.errors import ConfigError, CorpusError, DivergedError, MeasurementError
from charrnn.training.run import Run

SIZES = (16, 32, 64, 128, 256, 512, 1024)
SCALINGS: dict[str, float] = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # power of the batch size
RATES = ("learning_rate", "muon_learning_rate")
NEVER = 2**40  # steps


def sized(config: RunConfig, batch_size: int, seconds: float, scaling: str = "none") -> RunConfig:
    """`config` with that batch size, trained for that time and evaluated once, at the end.

    Args:
        config: its learning rates are those for its own batch size.
        batch_size: streams.
        seconds: of training.
        scaling: of the learning rates, a key of `SCALINGS`: as they are, or by the root of the ratio of the sizes, or
            by the ratio.
    """
    factor = (batch_size / config.training.batch_size) ** SCALINGS[scaling]
    rates = {name: getattr(config.training, name) * factor for name in RATES}
    return config.override({"batch_size": batch_size, "max_seconds": seconds, "eval_interval": NEVER, **rates})


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Train as `config`, a run as nested dictionaries, says.

    Returns:
        `speed` in characters per second, `steps`, `val_loss` in nats per token (None without a validation split) and
        `peak_bytes` of memory (None where it is not known); or `skipped`, the reason why there are none of these.
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
    """The most memory in use at once: of a GPU what tensors took, else what the whole process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes() if device.type == "cpu" else None


def sweep(
    config: RunConfig,
    sizes: Sequence[int] = SIZES,
    seconds: float = 10.0,
    scaling: str = "none",
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[dict[str, Any]]:
    """Train with each batch size, in a process of its own, so that one that runs out of memory ends no other.

    Args:
        config: everything but the batch size; of a budget in it nothing is kept.
        sizes: batch sizes.
        seconds: of training for each.
        scaling: of the learning rates, see `sized`.
        progress: wraps the loop over the sizes, as `tqdm` does.

    Returns:
        For each size a row: `batch_size`, `learning_rate`, and what `measure` gives.

    Raises:
        ConfigError: the text comes from standard input, which can be read once only.
        CorpusError: the text cannot be had.
    """
    if config.data.name == "-":
        raise ConfigError("data.name (--data): expected a text that can be read several times, got standard input")
    load_corpus(config.data)  # prepared once, for all of them
    rows = []
    for size in progress(sizes):
        run_config = sized(config, size, seconds, scaling)
        try:
            result = measure_apart(__name__, config=run_config.model_dump())
        except MeasurementError as error:
            result = {"skipped": str(error)}
        rows.append({"batch_size": size, "learning_rate": run_config.training.learning_rate, **result})
    return rows


def best_of(rows: Sequence[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """The fastest batch size, and the one with the lowest loss after equal time; None where nothing says."""
    measured = [row for row in rows if "skipped" not in row]
    evaluated = [row for row in measured if row["val_loss"] is not None]
    fastest = max(measured, key=lambda row: row["speed"], default={"batch_size": None})
    best = min(evaluated, key=lambda row: row["val_loss"], default={"batch_size": None})
    return fastest["batch_size"], best["batch_size"]


def conclusion(rows: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """What the rows say, in a sentence."""
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


if __name__ == "__main__":
    answer(measure)
