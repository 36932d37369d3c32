"""How fast text is written, beside the loop that a user would write instead, and how soon the first character comes.

    loop of one        `bench.usual.PlainLSTM` token by token, softmax, `torch.multinomial`, under `torch.no_grad`
    one text           the library's `stream`
    loop of a batch    the same loop, for as many rows as the library's batch
    a batch            the library's `generate_batch`
    … in bf16          both again in half precision, where the processor has it; the loop by `torch.autocast`

The weights are random: what a character costs does not depend on which it is.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from charrnn.api import create_model
from charrnn.bench.baselines import PlainLSTM
from charrnn.bench.processes import answer, measure_apart, seconds_to_output
from charrnn.data.tokenizer import CharTokenizer
from charrnn.device import candidate_precisions
from charrnn.generation.generator import TextGenerator

VOCABULARY = "".join(map(chr, range(33, 103)))  # 70 characters, as many as Shakespeare's plays have
TEMPERATURE = 0.8
LOOP = "loop of one"
EQUAL_LOOP = {  # of each contender: as many rows, in the same precision
    LOOP: LOOP,
    "one text": LOOP,
    "loop of a batch": "loop of a batch",
    "a batch": "loop of a batch",
    "loop of a batch in bf16": "loop of a batch in bf16",
    "a batch in bf16": "loop of a batch in bf16",
}


def plain_loop(model: PlainLSTM, length: int, batch_size: int = 1, precision: str = "fp32") -> int:
    """Write texts of `length` characters as it is written everywhere; return the number of characters."""
    tokens, state, columns = torch.zeros(batch_size, 1, dtype=torch.long), None, []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(length):
            logits, state = model(tokens, state)  # (B, 1, V)
            tokens = torch.multinomial((logits[:, -1].float() / TEMPERATURE).softmax(-1), 1)
            columns.append(tokens)
    texts = ["".join(VOCABULARY[token] for token in row) for row in torch.cat(columns, dim=1).tolist()]
    return sum(map(len, texts))


def one_text(generator: TextGenerator, length: int) -> int:
    """Write `length` characters with the library, as they come; return their number."""
    return sum(map(len, generator.stream("!", length, temperature=TEMPERATURE, seed=1))) - 1


def a_batch(generator: TextGenerator, length: int, batch_size: int, precision: str = "fp32") -> int:
    """Write `batch_size` texts of `length` characters with the library; return the number of characters."""
    texts = generator.generate_batch(["!"] * batch_size, length, temperature=TEMPERATURE, seed=1, precision=precision)
    return sum(map(len, texts)) - batch_size


def measure(contender: str, num_layers: int, hidden_size: int, batch_size: int, seconds: float) -> float:
    """Characters per second of one contender, over at least so many seconds."""
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
    write(64)  # kernels are compiled or loaded, memory is asked for
    length, spent = 64, 0.0
    while spent < seconds:
        length = min(4 * length, max(2 * length, int(1.2 * length * seconds / spent))) if spent else length
        begin = time.perf_counter()
        characters = write(length)
        spent = time.perf_counter() - begin
    return characters / spent


def contenders() -> list[str]:
    """What can be compared on this CPU."""
    has_bf16 = "bf16" in candidate_precisions(torch.device("cpu"))
    return [name for name in EQUAL_LOOP if has_bf16 or "bf16" not in name]


def compare(
    num_layers: int = 2,
    hidden_size: int = 128,
    batch_size: int = 256,
    rounds: int = 3,
    seconds: float = 3.0,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[dict[str, Any]]:
    """Characters per second of each contender on the CPU, by turns, each time in a process of its own; medians.

    Args:
        num_layers: of the LSTM.
        hidden_size: units of each layer.
        batch_size: texts in a batch.
        rounds: turns that each contender has.
        seconds: measured in each turn, at least.
        progress: wraps the loop over the turns, as `tqdm` does.

    Returns:
        A row for each contender: `what`, `speed`, and how many times faster that is: `times_loop_of_one`, and
        `times_equal_loop`, the gain over the loop of as many rows in the same precision.

    Raises:
        MeasurementError: a process failed.
    """
    speeds: dict[str, list[float]] = {name: [] for name in contenders()}
    for name in progress([name for _ in range(rounds) for name in speeds]):
        arguments = {"num_layers": num_layers, "hidden_size": hidden_size, "batch_size": batch_size}
        speeds[name].append(measure_apart(__name__, contender=name, **arguments, seconds=seconds))
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


def start(
    checkpoint: Path, rounds: int = 5, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> list[dict[str, Any]]:
    """Seconds from the start of Python to the first character of the model in `checkpoint`, by turns; medians.

    Returns:
        A row for each: `what` and `seconds`; PyTorch alone, and Python alone, for comparison.

    Raises:
        MeasurementError: a process failed.
    """
    seconds: dict[str, list[float]] = {what: [] for what in FIRST}
    for what in progress([what for _ in range(rounds + 1) for what in FIRST]):
        seconds[what].append(seconds_to_output(FIRST[what].format(path=str(checkpoint))))
    # the first turn may have compiled and read from disk what later ones find
    return [{"what": what, "seconds": statistics.median(each[1:])} for what, each in seconds.items()]


if __name__ == "__main__":
    answer(measure)
