"""Speed of turning a text into batches: beside the usual way (`bench.baselines`), and on texts too large for it."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from charrnn.bench.baselines import Windows, read_ids
from charrnn.bench.processes import answer, measure_apart, peak_bytes, with_bar
from charrnn.bench.report import Report, Row, Table
from charrnn.config import RunConfig, TrainingConfig
from charrnn.data.corpora import read_text
from charrnn.data.corpus import load_corpus
from charrnn.data.streams import CharDataset
from charrnn.errors import CorpusError, MeasurementError

CONFIG_FLAGS = ("data",)
COMPARISON = {
    "": "{what}",
    "usual": "{usual_seconds:time}",
    "charrnn": "{seconds:time}",
    "times faster": "{times_faster:,.0f}",
}
GROWTH = {
    "size": "{bytes:MB}",
    "prepare": "{prepare_seconds:time}",
    "speed": "{bytes_per_second:MB}/s",
    "again": "{again_seconds:time}",
    "batches": "{batches_seconds:time}",
    "peak memory": "{peak_bytes:MB}",
    "of it at the start": "{peak_bytes_at_start:MB}",
}
T = TypeVar("T")


def compare(name: str = "shakespeare", rounds: int = 7, batches: int = 200) -> list[Row]:
    """Seconds of the usual way and of charrnn, in turns on the same file; medians over the rounds.

    Args:
        name: a corpus.
        rounds: how often each is timed.
        batches: delivered in each round after the first, of the default batch_size and seq_length.

    Returns:
        Rows of `what`, `usual_seconds`, `seconds` and `times_faster`. Both sides deliver the same number of tokens.

    Raises:
        CorpusError: the text is too short to deliver that many batches.
    """
    config = TrainingConfig()
    text = read_text(name)
    needed = config.batch_size * config.seq_length * (batches + 3)
    if len(text) < needed:
        raise CorpusError(f"{name}: expected a text of at least {needed:,} characters to measure on, got {len(text):,}")
    seconds: dict[str, list[float]] = {}

    def timed(what: str, function: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = function()
        seconds.setdefault(what, []).append(time.perf_counter() - begin)
        return result

    tokens = batches * config.batch_size * config.seq_length
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.txt"
        path.write_text(text, encoding="utf-8", newline="\n")
        for turn in with_bar(range(rounds), "comparing"):
            ids = timed("usual preparation", lambda: read_ids(path))
            cache = Path(folder) / str(turn)
            corpus = timed("first preparation", lambda: load_corpus(path, data_dir=cache))  # noqa: B023
            timed("later preparation", lambda: load_corpus(path, data_dir=cache))  # noqa: B023
            usual = (y for _, y in DataLoader(Windows(ids, config.seq_length), config.batch_size, shuffle=True))
            dataset = CharDataset(corpus.tokens, config.batch_size, config.seq_length)
            ours = (window.targets for window in dataset.windows(turn))
            for what, targets in (("usual batches", usual), ("batches", ours)):
                next(targets)
                timed(what, lambda: deliver(targets, tokens))  # noqa: B023
        del corpus, dataset, ours  # some systems cannot remove a mapped file

    median = {what: statistics.median(values) for what, values in seconds.items()}
    shape = f"{config.batch_size} x {config.seq_length}"
    return [
        _row("prepare the text, first time", median["usual preparation"], median["first preparation"]),
        _row("prepare it again: at each later start", median["usual preparation"], median["later preparation"]),
        _row(f"deliver {tokens:,} tokens in batches of {shape}", median["usual batches"], median["batches"]),
    ]


def deliver(targets: Iterable[Tensor], tokens: int) -> int:
    """Take targets `(B, T)` until they hold that many tokens; return how many they hold."""
    taken = 0
    for batch in targets:
        taken += batch.numel()
        if taken >= tokens:
            break
    return taken


def _row(what: str, usual: float, ours: float) -> Row:
    return {"what": what, "usual_seconds": usual, "seconds": ours, "times_faster": usual / ours}


# ------------------------------------------------------------------------------------------------------------ at scale


def write_text(path: Path, size: int, seed: int = 0) -> None:
    """Write a text of `size` bytes: random pieces of Shakespeare."""
    source = read_text("shakespeare").encode("ascii")
    rng = np.random.default_rng(seed)
    piece = 1 << 16
    with open(path, "wb") as file:
        while size > 0:
            start = int(rng.integers(len(source) - piece))
            size -= file.write(source[start : start + min(piece, size)])


def scale(sizes: Sequence[int], batches: int = 1000) -> list[Row]:
    """Time and memory for a text of each size in bytes, each in its own process.

    Raises:
        OSError: less room than twice the size in the folder of temporary files.
        MeasurementError: the process failed.
    """
    rows = []
    for size in with_bar(sizes, "growing"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "input.txt"
            write_text(path, size)
            try:
                rows.append({"bytes": size, **measure_apart(__name__, path=str(path), batches=batches)})
            except MeasurementError as error:
                raise MeasurementError(
                    f"expected to prepare {size:,} bytes, got an error: {error}; try smaller --sizes"
                ) from error
    return rows


def measure(path: str, batches: int) -> Row:
    """Prepare a text twice, deliver some batches, and return seconds and bytes."""
    config = TrainingConfig()
    file, before = Path(path), peak_bytes()
    begin = time.perf_counter()
    load_corpus(file, data_dir=file.parent)
    prepared = time.perf_counter()
    corpus = load_corpus(file, data_dir=file.parent)
    again = time.perf_counter()
    windows = CharDataset(corpus.split().train, config.batch_size, config.seq_length).windows(0)
    delivered = sum(1 for _ in zip(range(batches), windows, strict=False))
    end = time.perf_counter()
    return {
        "prepare_seconds": prepared - begin,
        "bytes_per_second": file.stat().st_size / (prepared - begin),
        "again_seconds": again - prepared,
        "batches": delivered,
        "batches_seconds": end - again,
        "peak_bytes": peak_bytes(),
        "peak_bytes_at_start": before,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn bench data`."""
    sizes = [10, 100, 1000]
    about = "sizes of the growing texts (default: 10 100 1000)"
    parser.add_argument("--sizes", nargs="*", type="count", default=sizes, metavar="MB", help=about)


def report(config: RunConfig, arguments: argparse.Namespace) -> Report:
    """Compare with the usual way, then grow."""
    name = config.data.name
    comparison, growth = compare(name), scale([megabytes * 10**6 for megabytes in arguments.sizes])
    tables = [Table(f"{name}: the usual way and charrnn", comparison, COMPARISON)]
    if growth:
        title = f"texts of growing size, read in up to {max(row['batches'] for row in growth):,} batches"
        tables.append(Table(title, growth, GROWTH))
    return Report({"comparison": comparison, "growth": growth}, tables)


if __name__ == "__main__":
    answer(measure)
