"""How fast a network trains on each backend: our kernels beside torch's own layers and the readable cells.

A step is all of it: forward, loss, backward, clipping, the optimizer's update. Every backend is timed at every
precision and thread count that may be its best, by turns in one run, and the best of each are compared.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from charrnn.config import ModelConfig
from charrnn.device import autocast, candidate_precisions, keep_freed_memory
from charrnn.models.build import build_model
from charrnn.models.recurrent import CharModel
from charrnn.models.state import detach_state

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
    """A function that makes one step on random tokens, the state carried from call to call."""
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
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[dict[str, Any]]:
    """Characters per second of training on the CPU.

    Args:
        cells: keys of `CELLS`.
        shapes: (num_layers, hidden_size, batch_size, seq_length) each.
        rounds: how often each setting is timed, after one step that is not.
        progress: wraps the loop over cells and shapes, as `tqdm` does.

    Returns:
        For each cell and shape a row: `cell`, `shape`; under each backend's name `speed` (the median, characters per
        second), `precision` and `threads` of its best setting; and `settings`, the speeds of all.
    """
    keep_freed_memory()  # as in training
    threads = torch.get_num_threads()
    rows = []
    try:
        for cell, shape in progress(list(itertools.product(cells, shapes))):
            rows.append({"cell": cell, "shape": list(shape), **_measure(CELLS[cell], shape, rounds, threads)})
    finally:
        torch.set_num_threads(threads)
    return rows


def _measure(
    options: dict[str, Any], shape: tuple[int, int, int, int], rounds: int, max_threads: int
) -> dict[str, Any]:
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
    speeds = {setting: batch_size * seq_length / statistics.median(times) for setting, times in seconds.items()}
    settings = [
        {"backend": backend, "precision": precision, "threads": threads, "speed": speed}
        for (backend, precision, threads), speed in speeds.items()
    ]
    best = {setting["backend"]: setting for setting in sorted(settings, key=lambda setting: setting["speed"])}
    return {**best, "settings": settings}
