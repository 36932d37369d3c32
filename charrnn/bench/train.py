"""Speed of training, and the loss after equal time, beside what a user would write instead.

All programs train the same network, an embedding of size V, stacked LSTM layers and a linear head, on the same text
with AdamW at the same constant rate and clipped gradients, without dropout:

- ours: the library's `Trainer`, which chooses precision and backend by itself;
- the plain loop: PyTorch's `nn.LSTM` on contiguous streams, the state carried and detached, the loss read at each step;
- the plain loop in bf16: the same under `torch.autocast`, with the fused AdamW;
- the usual windows (`bench.baselines`), shuffled, each starting from an empty state.

Programs learn more or less from the same number of characters. So the loss on the whole validation split after equal
time is shown beside the speed, evaluated in the same way for all: in fp32, with carried state. The time begins with the
first step, which for ours includes the choice of precision and backend. It excludes the evaluation.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from charrnn.bench.baselines import PlainLSTM, Windows
from charrnn.bench.processes import answer, measure_apart, supported, take_turns
from charrnn.bench.report import Report, Row, Table, add_rounds, add_seconds, describe_shape
from charrnn.config import RunConfig
from charrnn.data.corpus import load_corpus
from charrnn.errors import CorpusError
from charrnn.models.recurrent import CharModel
from charrnn.training.evaluation import evaluate
from charrnn.training.events import Stepped
from charrnn.training.run import Run
from charrnn.training.trainer import Trainer

Shape = tuple[int, int, int, int]  # num_layers, hidden_size, batch_size, seq_length
SHAPES: tuple[Shape, ...] = ((2, 128, 50, 50), (1, 384, 32, 64))
CONFIG_FLAGS = ("data",)
COLUMNS = {
    "size, B x T": "{size}",
    "program": "{program}",
    "characters/s": "{speed:,.0f}",
    "x faster": "{times_faster:.2f}",
    "validation loss": "{val_loss:.3f}",
}
NEVER = 2**40  # steps
RATE, WEIGHT_DECAY, LARGEST_NORM = 2e-3, 1e-5, 5.0


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, state: Any, bf16: bool) -> Any:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits, state = model(x, state)
    loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
    optimizer.step()
    loss.item()  # as in most programs, for their progress bar
    return state


def _adamw(model: nn.Module, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), RATE, weight_decay=WEIGHT_DECAY, fused=fused)


def plain_loop(model: nn.Module, tokens: Tensor, shape: Shape, bf16: bool = False) -> Iterator[int]:
    """Train on contiguous streams; yield the characters read at each step."""
    optimizer = _adamw(model, fused=bf16)
    batch_size, seq_length = shape[2:]
    length = (len(tokens) - 1) // batch_size
    inputs = tokens[: batch_size * length].view(batch_size, length)
    targets = tokens[1 : batch_size * length + 1].view(batch_size, length)
    while True:
        state = None
        for start in range(0, length - seq_length + 1, seq_length):
            window = slice(start, start + seq_length)
            state = _update(model, optimizer, inputs[:, window], targets[:, window], state, bf16)
            state = tuple(each.detach() for each in state)
            yield batch_size * seq_length


def usual_windows(model: nn.Module, tokens: Tensor, shape: Shape) -> Iterator[int]:
    """Train on shuffled windows; yield the characters read at each step."""
    optimizer = _adamw(model)
    batch_size, seq_length = shape[2:]
    while True:
        for x, y in DataLoader(Windows(tokens, seq_length), batch_size, shuffle=True):
            _update(model, optimizer, x, y, None, bf16=False)
            yield x.numel()


# --------------------------------------------------------------------------------------------------------------- ours


def _config(data: str, shape: Shape) -> RunConfig:
    num_layers, hidden_size, batch_size, seq_length = shape
    settings = {"data": data, "num_layers": num_layers, "hidden_size": hidden_size, "dropout": 0.0}
    settings |= {"batch_size": batch_size, "seq_length": seq_length, "max_steps": NEVER, "eval_interval": NEVER}
    settings |= {"learning_rate": RATE, "schedule": "constant", "warmup_frac": 0.0}
    settings |= {"weight_decay": WEIGHT_DECAY, "grad_clip": LARGEST_NORM, "device": "cpu"}
    return RunConfig().override(settings)


def ours(trainer: Trainer) -> Iterator[int]:
    """Train with the library; yield the characters read at each step."""
    epoch_length = trainer.dataset.epoch_tokens
    before = 0.0
    for event in trainer:
        if isinstance(event, Stepped):
            yield round((event.epoch - before) * epoch_length)
            before = event.epoch


# -------------------------------------------------------------------------------------------------------- to measure

OURS = "ours"
PLAIN: dict[str, Callable[[nn.Module, Tensor, Shape], Iterator[int]]] = {
    "plain loop": plain_loop,
    "plain loop in bf16": lambda model, tokens, shape: plain_loop(model, tokens, shape, bf16=True),
    "usual windows": usual_windows,
}


def measure(contender: str, data: str, shape: Shape, seconds: float) -> Row:
    """Train for `seconds`, then evaluate.

    Args:
        contender: `OURS`, or a key of `PLAIN`.
        data: a corpus.
        shape: (num_layers, hidden_size, batch_size, seq_length).
        seconds: of training.

    Returns:
        `speed` in characters per second, excluding the start, and `val_loss` in nats per token; for ours also the
        `precision` and `backend` chosen.

    Raises:
        CorpusError: the text cannot be read or is too short.
    """
    config = _config(data, shape)
    if contender == OURS:
        trainer = Run.start(config).trainer
        speed = _speed(ours(trainer), seconds)
        chosen = {"precision": trainer.progress.precision, "backend": trainer.progress.backend}
        return {"speed": speed, "val_loss": evaluate(trainer.model, trainer.val), **chosen}
    corpus = load_corpus(config.data)
    splits = corpus.split(config.data.train_frac, config.data.val_frac)
    tokens = torch.from_numpy(splits.train.astype("int64"))
    num_layers, hidden_size, batch_size, seq_length = shape
    if len(tokens) <= batch_size * seq_length:
        raise CorpusError(f"expected more than {batch_size * seq_length:,} tokens to train on, got {len(tokens):,}")
    torch.manual_seed(config.device.seed)
    model = PlainLSTM(corpus.tokenizer.vocab_size, hidden_size, num_layers)
    speed = _speed(PLAIN[contender](model, tokens, shape), seconds)
    return {"speed": speed, "val_loss": evaluate(cast(CharModel, model), splits.val)}  # the same contract


def _speed(steps: Iterator[int], seconds: float) -> float:
    """Characters per second over `seconds` of steps, excluding three steps and the first tenth of the time."""
    begin = time.perf_counter()
    for _ in range(3):
        next(steps)
    while (start := time.perf_counter()) - begin < seconds / 10:
        next(steps)
    characters = 0
    while (now := time.perf_counter()) - begin < seconds or not characters:
        characters += next(steps)
    return characters / (now - start)


def compare(
    data: str = "shakespeare", shapes: Sequence[Shape] = SHAPES, rounds: int = 3, seconds: float = 20.0
) -> list[Row]:
    """Measure speed and loss of each program on the CPU, in turns, each time in its own process; medians.

    Args:
        data: a corpus name or path.
        shapes: (num_layers, hidden_size, batch_size, seq_length) each.
        rounds: turns of each program.
        seconds: of training in each turn.

    Returns:
        For each shape a row: `shape`; under each program's name the result of `measure`; and `times_faster`, the speed
        of ours over that of each other.

    Raises:
        CorpusError: the text cannot be read or is too short.
        MeasurementError: a process failed.
    """
    load_corpus(_config(data, SHAPES[0]).data)  # prepared once, for all of them
    return [_compare(data, shape, rounds, seconds) for shape in shapes]


def _compare(data: str, shape: Shape, rounds: int, seconds: float) -> Row:
    arguments = {"data": data, "shape": shape, "seconds": seconds}
    results = take_turns(
        supported([OURS, *PLAIN]),
        rounds,
        lambda contender: measure_apart(__name__, contender=contender, **arguments),
        f"training {describe_shape(*shape)}",
    )
    medians = {
        name: {**each[-1], **{unit: statistics.median(turn[unit] for turn in each) for unit in ("speed", "val_loss")}}
        for name, each in results.items()
    }
    times = {name: medians[OURS]["speed"] / each["speed"] for name, each in medians.items() if name != OURS}
    return {"shape": list(shape), **medians, "times_faster": times}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench train`."""
    add_rounds(parser, 3)
    add_seconds(parser, 20.0, "seconds of training in each turn")


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare the programs."""
    results = compare(config.data.name, rounds=arguments.rounds, seconds=arguments.seconds)
    chosen = "{program}, {precision}, {backend}"
    rows = [
        {
            "size": describe_shape(*result["shape"]),
            "program": chosen.format(program=name, **result[name]) if name == OURS else name,
            "times_faster": result["times_faster"].get(name),
            **result[name],
        }
        for result in results
        for name in supported([OURS, *PLAIN])
    ]
    title = f"{arguments.seconds:g} s of training each; how many times faster ours is, and the validation loss then"
    return Report(results, [Table(title, rows, COLUMNS)])


if __name__ == "__main__":
    answer(measure)
