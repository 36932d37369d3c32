"""Speed of a training step on each backend: our kernels beside PyTorch's own layers and the reference equations.

A step is all of it: forward, loss, backward, clipping, update. Every backend is timed at every precision and thread
count that may be its best, in turns, and the best of each are compared.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from charrnn.bench.processes import with_bar
from charrnn.bench.report import Report, Row, Table, add_rounds, describe_shape
from charrnn.config import ModelConfig, RunConfig
from charrnn.device import autocast, candidate_precisions, keep_freed_memory
from charrnn.models.build import build_model
from charrnn.models.recurrent import CharModel
from charrnn.models.state import detach_state

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
CPU = torch.device("cpu")
VOCAB_SIZE = 70  # that of Shakespeare
SHAPES = (  # num_layers, hidden_size, batch_size, seq_length
    (2, 128, 50, 50),
    (1, 384, 32, 64),
    (2, 384, 64, 25),
)
CELLS: dict[str, dict[str, Any]] = {
    "rnn": {"type": "rnn"},
    "gru": {"type": "gru"},
    "lstm": {"type": "lstm"},
    "ln-lstm": {"type": "lstm", "layer_norm": True},
}


def training_step(model: CharModel, batch_size: int, seq_length: int, precision: str) -> Callable[[], None]:
    """Return a function that makes one step on random tokens; the state is carried from call to call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.vocab_size, (batch_size, seq_length + 1), generator=random)
    state = None

    def step() -> None:
        nonlocal state
        with autocast(CPU, precision):
            logits, state = model(tokens[:, :-1], state)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        state = detach_state(state)

    return step


def compare(
    cells: Sequence[str] = tuple(CELLS),
    shapes: Sequence[tuple[int, int, int, int]] = SHAPES,
    rounds: int = 9,
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
    keep_freed_memory()  # as in training
    threads = torch.get_num_threads()
    rows = []
    try:
        for cell, shape in with_bar(list(itertools.product(cells, shapes)), "training"):
            rows.append({"cell": cell, "shape": list(shape), **_measure(CELLS[cell], shape, rounds, threads)})
    finally:
        torch.set_num_threads(threads)
    return rows


def _measure(options: dict[str, Any], shape: tuple[int, int, int, int], rounds: int, max_threads: int) -> Row:
    num_layers, hidden_size, batch_size, seq_length = shape
    config = ModelConfig(hidden_size=hidden_size, num_layers=num_layers, dropout=0.0, **options)
    steps: dict[tuple[str, str, int], Callable[[], None]] = {}
    for backend in build_model(config, VOCAB_SIZE).backends:
        for precision in candidate_precisions(CPU):
            model = build_model(config, VOCAB_SIZE)
            model.backend = backend
            step = training_step(model, batch_size, seq_length, precision)
            steps |= {(backend, precision, threads): step for threads in sorted({1, max_threads})}
    seconds: dict[tuple[str, str, int], list[float]] = {setting: [] for setting in steps}
    for turn in range(-1, rounds):
        for setting, step in steps.items():
            torch.set_num_threads(setting[2])
            begin = time.perf_counter()
            step()
            if turn >= 0:
                seconds[setting].append(time.perf_counter() - begin)
    names = ("backend", "precision", "threads")
    settings: list[Row] = [
        {**dict(zip(names, setting, strict=True)), "speed": batch_size * seq_length / statistics.median(times)}
        for setting, times in seconds.items()
    ]
    best = {setting["backend"]: setting for setting in sorted(settings, key=lambda setting: setting["speed"])}
    return {**best, "settings": settings}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench kernels`."""
    about = f"(default: {' '.join(CELLS)})"
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
