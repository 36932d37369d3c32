"""Speed of training on each backend: our kernels beside PyTorch's own layers and the reference equations.

On the CPU each backend is timed at every precision and thread count, in turns, as in `bench.devices`; the best of each
are compared.
"""

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from charrnn.bench.devices import compare as compare_settings
from charrnn.bench.devices import settings_here
from charrnn.bench.report import Report, Row, Table, add_rounds, describe_shape
from charrnn.config import ModelConfig, RunConfig

CONFIG_FLAGS = ()
COLUMNS = {
    "cell": "{cell}",
    "size, B x T": "{size}",
    "reference": "{reference[speed]:,.0f}",
    "fused": "{fused[speed]:,.0f}",
    "numba": "{numba[speed]:,.0f}",
    "torch": "{torch[speed]:,.0f}",
    "x torch": "{times_torch:.2f}",
    "x reference": "{times_reference:.2f}",
}
SHAPES = ((2, 128, 50, 50), (1, 384, 32, 64), (2, 384, 64, 25))  # num_layers, hidden_size, batch_size, seq_length
CELLS: dict[str, dict[str, Any]] = {
    "rnn": {"type": "rnn"},
    "gru": {"type": "gru"},
    "lstm": {"type": "lstm"},
    "ln-lstm": {"type": "lstm", "layer_norm": True},
}


def compare(
    cells: Sequence[str] = tuple(CELLS), shapes: Sequence[tuple[int, int, int, int]] = SHAPES, rounds: int = 9
) -> list[Row]:
    """Characters per second of training on the CPU.

    Args:
        cells: keys of `CELLS`.
        shapes: (num_layers, hidden_size, batch_size, seq_length) each.
        rounds: timed steps of each setting, after one that is not timed.

    Returns:
        For each cell and shape a row: `cell`, `shape`; under each backend's name `speed` (the median, characters per
        second), `precision` and `threads` of its best setting; and `settings`, all speeds.
    """
    rows = []
    for cell, shape in itertools.product(cells, shapes):
        num_layers, hidden_size, batch_size, seq_length = shape
        model = ModelConfig(num_layers=num_layers, hidden_size=hidden_size, dropout=0.0, **CELLS[cell])
        settings = [setting for setting in settings_here(model, reference=True) if setting.device == "cpu"]
        speeds = compare_settings(model, batch_size, seq_length, rounds, steps=1, settings=settings)  # fastest first
        best = {speed["backend"]: speed for speed in reversed(speeds)}
        rows.append({"cell": cell, "shape": list(shape), **best, "settings": speeds})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench kernels`."""
    about = f"cells to measure (default: {' '.join(CELLS)})"
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), metavar="CELL", help=about)
    add_rounds(parser, 9)


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare the backends."""
    results = compare(arguments.cells, rounds=arguments.rounds)
    rows = [{**result, "size": describe_shape(*result["shape"]), **_ratios(result)} for result in results]
    title = "characters per second of training, and how many times faster our kernels are"
    return Report(results, [Table(title, rows, COLUMNS)])


def _ratios(result: Row) -> dict[str, float]:
    """The speed of the faster of our kernels over that of each other backend."""
    ours = max(result[name]["speed"] for name in ("fused", "numba") if name in result)
    return {f"times_{name}": ours / result[name]["speed"] for name in ("torch", "reference") if name in result}
