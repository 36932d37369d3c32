"""Speed of writing text, beside the loop that a user would write instead, and the time to the first character.

    loop of one        `bench.baselines.PlainLSTM` token by token, softmax, `torch.multinomial`, under `torch.no_grad`
    one text           the library's `stream`
    loop of a batch    the same loop, for as many rows as the library's batch
    a batch            the library's `generate_batch`
    … in bf16          both again in bf16 if the processor supports it; the loop by `torch.autocast`

The weights are random: the cost of a character does not depend on the character.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from charrnn.api import create_model
from charrnn.bench.baselines import PlainLSTM
from charrnn.bench.processes import answer, measure_apart, seconds_to_output, supported, take_turns
from charrnn.bench.report import Report, Row, Table, add_rounds, add_seconds
from charrnn.checkpoint import find_checkpoint
from charrnn.config import RunConfig
from charrnn.data.tokenizer import CharTokenizer
from charrnn.generation.generator import TextGenerator

VOCABULARY = "".join(map(chr, range(33, 103)))  # 70 characters, as many as Shakespeare's plays have
TEMPERATURE = 0.8
SHIPPED = Path("checkpoints/shakespeare-lstm")
CONFIG_FLAGS = ()
SPEEDS = {
    "": "{what}",
    "characters/s": "{speed:,.0f}",
    "x loop of one": "{times_loop_of_one:.1f}",
    "x equal loop": "{times_equal_loop:.1f}",
}
STARTS = {"": "{what}", "seconds": "{seconds:.2f}"}
Precision = Literal["fp32", "bf16"]
LOOP = "loop of one"
EQUAL_LOOP = {  # for each contender the loop of as many rows in the same precision
    LOOP: LOOP,
    "one text": LOOP,
    "loop of a batch": "loop of a batch",
    "a batch": "loop of a batch",
    "loop of a batch in bf16": "loop of a batch in bf16",
    "a batch in bf16": "loop of a batch in bf16",
}


def plain_loop(model: PlainLSTM, length: int, batch_size: int = 1, precision: str = "fp32") -> int:
    """Write texts of `length` characters in a plain loop; return the number of characters."""
    tokens, state, columns = torch.zeros(batch_size, 1, dtype=torch.long), None, []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(length):
            logits, state = model(tokens, state)  # (B, 1, V)
            tokens = torch.multinomial((logits[:, -1].float() / TEMPERATURE).softmax(-1), 1)
            columns.append(tokens)
    texts = ["".join(VOCABULARY[token] for token in row) for row in torch.cat(columns, dim=1).tolist()]
    return sum(map(len, texts))


def one_text(generator: TextGenerator, length: int) -> int:
    """Stream `length` characters with the library; return their number."""
    return sum(map(len, generator.stream("!", length, temperature=TEMPERATURE, seed=1))) - 1


def a_batch(generator: TextGenerator, length: int, batch_size: int, precision: Precision = "fp32") -> int:
    """Write `batch_size` texts of `length` characters with the library; return the number of characters."""
    texts = generator.generate_batch(["!"] * batch_size, length, temperature=TEMPERATURE, seed=1, precision=precision)
    return sum(map(len, texts)) - batch_size


def measure(contender: str, num_layers: int, hidden_size: int, batch_size: int, seconds: float) -> float:
    """Characters per second of one contender over at least so many seconds."""
    torch.manual_seed(1)
    model = PlainLSTM(len(VOCABULARY), hidden_size, num_layers).eval()
    generator = create_model(CharTokenizer(VOCABULARY), num_layers=num_layers, hidden_size=hidden_size, seed=1)
    write: Callable[[int], int] = {
        LOOP: lambda length: plain_loop(model, length),
        "one text": lambda length: one_text(generator, length),
        "loop of a batch": lambda length: plain_loop(model, length, batch_size),
        "a batch": lambda length: a_batch(generator, length, batch_size),
        "loop of a batch in bf16": lambda length: plain_loop(model, length, batch_size, "bf16"),
        "a batch in bf16": lambda length: a_batch(generator, length, batch_size, "bf16"),
    }[contender]
    write(64)  # compiles or loads kernels and allocates memory
    length, spent = 64, 0.0
    while spent < seconds:
        length = min(4 * length, max(2 * length, int(1.2 * length * seconds / spent))) if spent else length
        begin = time.perf_counter()
        characters = write(length)
        spent = time.perf_counter() - begin
    return characters / spent


def compare(
    num_layers: int = 2, hidden_size: int = 128, batch_size: int = 256, rounds: int = 3, seconds: float = 3.0
) -> list[Row]:
    """Characters per second of each contender on the CPU, in turns, each time in its own process; medians.

    Args:
        num_layers: layers of the LSTM.
        hidden_size: units of each layer.
        batch_size: texts in a batch.
        rounds: turns of each contender.
        seconds: time of each turn, at least.

    Returns:
        A row for each contender: `what`, `speed`, `times_loop_of_one`, the speed over that of the loop of one, and
        `times_equal_loop`, that over the loop of as many rows in the same precision.

    Raises:
        MeasurementError: a process failed.
    """
    shape = {"num_layers": num_layers, "hidden_size": hidden_size, "batch_size": batch_size}
    speeds = take_turns(
        supported(EQUAL_LOOP),
        rounds,
        lambda name: measure_apart(__name__, contender=name, **shape, seconds=seconds),
        "writing",
    )
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    return [
        {
            "what": name,
            "speed": speed,
            "times_loop_of_one": speed / medians[LOOP],
            "times_equal_loop": speed / medians[EQUAL_LOOP[name]],
        }
        for name, speed in medians.items()
    ]


FIRST = {
    "charrnn.load_model(…).stream()": "import charrnn; print(next(charrnn.load_model({path!r}).stream(seed=1)))",
    "import torch": "import torch; print(torch)",
    "python": "print(0)",
}


def start(checkpoint: Path, rounds: int = 5) -> list[Row]:
    """Seconds from the start of Python to the first character of the model in `checkpoint`; medians.

    Returns:
        Rows of `what` and `seconds`, also for PyTorch alone and Python alone.

    Raises:
        MeasurementError: a process failed.
    """
    programs = {what: code.format(path=str(checkpoint)) for what, code in FIRST.items()}
    seconds = take_turns(list(programs), rounds + 1, lambda what: seconds_to_output(programs[what]), "starting")
    # the first turn may compile, and read from disk, what later ones find in caches
    return [{"what": what, "seconds": statistics.median(each[1:])} for what, each in seconds.items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench sample`."""
    add = partial(parser.add_argument, type="count", metavar="N")
    add("--layers", default=2, help="layers of the LSTM")
    add("--hidden-size", default=128, help="units of each layer")
    add("--batch-size", default=256, help="texts in the batch")
    about = "the model whose first character is timed"
    parser.add_argument("--checkpoint", type="path", default=SHIPPED, metavar="DIR", help=about)
    add_rounds(parser, 3)
    add_seconds(parser, 3.0, "seconds of each turn")


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare the contenders, and time the first character."""
    checkpoint = find_checkpoint(arguments.checkpoint)
    shape = (arguments.layers, arguments.hidden_size, arguments.batch_size)
    speeds = compare(*shape, arguments.rounds, arguments.seconds)
    starts = start(checkpoint, arguments.rounds)
    title = "characters per second, LSTM {}x{}, a batch of {}".format(*shape)
    tables = [Table(title, speeds, SPEEDS), Table("from the start of Python to the first character", starts, STARTS)]
    note = "equal loop: PyTorch's LSTM in a plain loop that writes as many texts side by side, in the same precision"
    return Report({"speeds": speeds, "starts": starts}, tables, [note])


if __name__ == "__main__":
    answer(measure)
