"""Find where training is fastest here: every device, precision and backend, and on the CPU 1, 2, 4, … threads.

Each setting has its own trainer, the same that `charrnn train` uses, on random text. They train in turns, so that a
slow moment of the machine slows all of them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from charrnn.api import get_model_info
from charrnn.bench.processes import run_apart, take_turns
from charrnn.bench.report import Report, Row, Table, add_rounds, describe_shape
from charrnn.config import DeviceConfig, ModelConfig, RunConfig, TrainingConfig, dump_config
from charrnn.device import candidate_precisions, synchronize
from charrnn.models.build import build_model
from charrnn.training.callbacks import read_metrics
from charrnn.training.events import Event, Stepped
from charrnn.training.trainer import Trainer

CONFIG_FLAGS = ("model_type", "hidden_size", "num_layers", "layer_norm", "batch_size", "seq_length")
COLUMNS = {
    "device": "{device}",
    "precision": "{precision}",
    "backend": "{backend}",
    "processes": "{processes}",
    "threads": "{threads}",
    "characters/s": "{speed:,.0f}",
}
VOCAB_SIZE = 70  # that of Shakespeare
NEVER = 2**40  # steps


def devices_here() -> list[torch.device]:
    """Every CUDA device, MPS, and the CPU."""
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [*found, torch.device("cpu")]


def thread_counts(most: int) -> list[int]:
    """1, 2, 4, … and `most`."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def settings_here(model: ModelConfig, reference: bool = False) -> list[DeviceConfig]:
    """Every combination that can train `model` here; the reference backend, which is for reading, only on request."""
    backends = [name for name in build_model(model, VOCAB_SIZE).backends if reference or name != "reference"]
    return [
        DeviceConfig(device=str(device), precision=precision, backend=backend, threads=threads)
        for device in devices_here()
        for precision in candidate_precisions(device)
        for backend in backends
        if device.type == "cpu" or backend != "numba"
        for threads in (thread_counts(os.cpu_count() or 1) if device.type == "cpu" else [None])
    ]


class Contender:
    """A training run that makes a few steps at each turn.

    Args:
        model: the network.
        training: batch_size and seq_length, and how it learns.
        setting: where and how it trains.
    """

    def __init__(self, model: ModelConfig, training: TrainingConfig, setting: DeviceConfig):
        self.setting = setting
        length = training.batch_size * training.seq_length * 100 + 1
        tokens = np.random.default_rng(0).integers(VOCAB_SIZE, size=length, dtype=np.uint8)
        trainer = Trainer(build_model(model, VOCAB_SIZE), tokens, tokens[:0], training, setting)
        self._device = trainer.device
        self._tokens = training.batch_size * training.seq_length
        self._events: Iterator[Event] = iter(trainer)

    def turn(self, steps: int) -> float:
        """Make some steps; return the characters per second."""
        if self.setting.threads is not None:
            torch.set_num_threads(self.setting.threads)
        synchronize(self._device)
        begin = time.perf_counter()
        for _ in range(steps):
            while not isinstance(next(self._events), Stepped):
                pass
        synchronize(self._device)
        return steps * self._tokens / (time.perf_counter() - begin)


def compare(
    model: ModelConfig,
    batch_size: int = 50,
    seq_length: int = 50,
    rounds: int = 5,
    steps: int = 5,
    settings: Sequence[DeviceConfig] | None = None,
) -> list[Row]:
    """Characters per second of training with each setting, medians over the rounds, the fastest first.

    Args:
        model: the network.
        batch_size: streams.
        seq_length: characters in a window.
        rounds: turns of each setting, after one that does not count.
        steps: in each turn.
        settings: to compare; None is all of `settings_here`.

    Returns:
        For each setting a row: `device`, `precision`, `backend`, `threads` (None except on the CPU) and `speed`.
    """
    never = {"max_steps": NEVER, "eval_interval": NEVER, "save_interval": NEVER}
    training = TrainingConfig(batch_size=batch_size, seq_length=seq_length, **never)
    threads = torch.get_num_threads()
    contenders: dict[DeviceConfig, Contender] = {}
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for setting in settings_here(model) if settings is None else settings:
                contenders[setting] = Contender(model, training, setting)
            speeds = take_turns(list(contenders), rounds + 1, lambda each: contenders[each].turn(steps), "training")
    finally:
        contenders.clear()  # ends their trainers, which set the number of threads
        torch.set_num_threads(threads)
    names = {"device", "precision", "backend", "threads"}
    rows: list[Row] = [
        {**setting.model_dump(include=names), "speed": statistics.median(each[1:])}  # the first turn builds kernels
        for setting, each in speeds.items()
    ]
    return sorted(rows, key=lambda row: -row["speed"])


def together(
    model: ModelConfig, batch_size: int = 50, seq_length: int = 50, processes: int = 2, steps: int = 60
) -> Row:
    """Characters per second of several processes on the CPU that train one model, as torchrun starts them.

    Args:
        model: the network.
        batch_size: streams of all processes together, a multiple of their number.
        seq_length: characters in a window.
        processes: their number; they share the CPU's threads evenly.
        steps: updates; the last half is measured.

    Returns:
        A row like those of `compare`, with `processes`, and the `threads` of each.

    Raises:
        MeasurementError: a process failed.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    settings = {"device": "cpu", "threads": threads, "batch_size": batch_size, "seq_length": seq_length}
    settings |= {"max_steps": steps, "log_interval": max(1, steps // 2), "eval_interval": NEVER, "val_frac": 0}
    with tempfile.TemporaryDirectory() as folder:
        text, run, settings_file = (Path(folder) / name for name in ("text.txt", "run", "settings.yaml"))
        config = RunConfig(model=model).override({**settings, "data": str(text)})
        settings_file.write_text(dump_config(config), encoding="utf-8")
        characters = np.random.default_rng(0).integers(VOCAB_SIZE, size=batch_size * seq_length * 100) + ord("0")
        text.write_text("".join(map(chr, characters)), encoding="utf-8")
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "charrnn"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run_apart([*command, "train", str(settings_file), "--quiet", f"--out={run}"], environment)
        logged = [record for record in read_metrics(run) if record["event"] == "logged"]
        progress = get_model_info(run / "last")["training"]["progress"]
    chosen = {name: progress[name] for name in ("device", "precision", "backend")}
    return {**chosen, "threads": threads, "processes": processes, "speed": logged[-1]["tokens_per_second"]}


def conclusion(rows: Sequence[Row]) -> str:
    """The best row of `compare`, and the gain from more threads and, with the row of `together`, from processes."""
    alone = [row for row in rows if row.get("processes", 1) == 1]
    best = alone[0]
    names = ("device", "precision", "backend", "threads")
    flags = " ".join(f"--{name} {best[name]}" for name in names if best[name] is not None)
    said = f"Fastest here: {flags}, {best['speed']:,.0f} characters per second."
    fastest: dict[int, float] = {}
    for row in alone:  # the fastest first
        if row["device"] == "cpu":
            fastest.setdefault(row["threads"], row["speed"])
    most = max(fastest, default=1)
    if most > 1:
        said += f" On the CPU {most} threads are {fastest[most] / fastest[1]:.2f} times as fast as one."
    for row in rows:
        if row not in alone:
            said += (
                f" {row['processes']} processes of {row['threads']} thread(s) each, by torchrun, are "
                f"{row['speed'] / max(fastest.values()):.2f} times as fast as one process at its best."
            )
    return said


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench devices`."""
    add_rounds(parser, 5)


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare the settings, and two processes with one."""
    model, batch_size, seq_length = config.model, config.training.batch_size, config.training.seq_length
    rows = compare(model, batch_size, seq_length, arguments.rounds)
    if batch_size % 2 == 0 and distributed.is_available():
        rows.append(together(model, batch_size, seq_length))
    title = f"training {describe_shape(model.num_layers, model.hidden_size, batch_size, seq_length)}"
    shown = [{"processes": 1, **row} for row in rows]
    return Report(rows, [Table(title, shown, COLUMNS)], conclusions=[conclusion(rows)])
