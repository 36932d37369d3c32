"""How fast a text becomes batches: beside the usual way (`bench.usual`), and at sizes where the usual way ends."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from charrnn.bench.baselines import Windows, read_ids
from charrnn.config import TrainingConfig
from charrnn.data.corpora import read_text
from charrnn.data.corpus import load_corpus
from charrnn.data.streams import CharDataset
from charrnn.errors import CorpusError


def compare(
    name: str = "shakespeare",
    rounds: int = 7,
    batches: int = 200,
    progress: Callable[[range], Iterable[int]] = iter,
) -> list[dict[str, Any]]:
    """Seconds of the usual way and of charrnn, by turns on the same file; medians over the rounds.

    Args:
        name: a corpus.
        rounds: how often each is timed.
        batches: delivered in each round, after the first, of the default batch_size and seq_length.
        progress: wraps the loop over the rounds, as `tqdm` does.

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

    def timed(what: str, function: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = function()
        seconds.setdefault(what, []).append(time.perf_counter() - begin)
        return result

    tokens = batches * config.batch_size * config.seq_length
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.txt"
        path.write_text(text, encoding="utf-8", newline="\n")
        for turn in progress(range(rounds)):
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
        del corpus, dataset, ours  # a mapped file cannot be removed everywhere

    median = {what: statistics.median(values) for what, values in seconds.items()}
    shape = f"{config.batch_size} x {config.seq_length}"
    return [
        _row("prepare the text, first time", median["usual preparation"], median["first preparation"]),
        _row("prepare it again: at each later start", median["usual preparation"], median["later preparation"]),
        _row(f"deliver {tokens:,} tokens in batches of {shape}", median["usual batches"], median["batches"]),
    ]


def deliver(targets: Iterable[Tensor], tokens: int) -> int:
    """Take the targets `(B, T)` of batches until they hold that many tokens; return how many they hold."""
    taken = 0
    for batch in targets:
        taken += batch.numel()
        if taken >= tokens:
            break
    return taken


def _row(what: str, usual: float, ours: float) -> dict[str, Any]:
    return {"what": what, "usual_seconds": usual, "seconds": ours, "times_faster": usual / ours}


# ------------------------------------------------------------------------------------------------------------ at scale


def write_text(path: Path, size: int, seed: int = 0) -> None:
    """A text of `size` bytes: pieces of Shakespeare, drawn at random."""
    source = read_text("shakespeare").encode("ascii")
    rng = np.random.default_rng(seed)
    piece = 1 << 16
    with open(path, "wb") as file:
        while size > 0:
            start = int(rng.integers(len(source) - piece))
            size -= file.write(source[start : start + min(piece, size)])


def scale(sizes: Sequence[int], batches: int = 1000) -> Iterator[dict[str, Any]]:
    """For each size in bytes, how long a text takes and how much memory, each in a process of its own.

    Raises:
        OSError: not enough room for twice the size in the folder of temporary files.
        CorpusError: the process failed.
    """
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "input.txt"
            write_text(path, size)
            command = [sys.executable, "-m", __name__, str(path), str(batches)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.splitlines() or ["killed"])[-1]
            raise CorpusError(f"expected to prepare {size:,} bytes, got an error: {reason}; try smaller --sizes")
        yield {"bytes": size, **json.loads(result.stdout)}


def _measure(path: Path, batches: int) -> dict[str, Any]:
    config = TrainingConfig()
    before = _peak_bytes()
    begin = time.perf_counter()
    load_corpus(path, data_dir=path.parent)
    prepared = time.perf_counter()
    corpus = load_corpus(path, data_dir=path.parent)
    again = time.perf_counter()
    windows = CharDataset(corpus.split().train, config.batch_size, config.seq_length).windows(0)
    delivered = sum(1 for _ in zip(range(batches), windows, strict=False))
    end = time.perf_counter()
    return {
        "prepare_seconds": prepared - begin,
        "bytes_per_second": path.stat().st_size / (prepared - begin),
        "again_seconds": again - prepared,
        "batches": delivered,
        "batches_seconds": end - again,
        "peak_bytes": _peak_bytes(),
        "peak_bytes_at_start": before,
    }


def _peak_bytes() -> int | None:
    """The most memory that this process has had at once; None where the system does not say."""
    status = Path("/proc/self/status")  # getrusage would count what the parent had when it forked, too
    if not status.exists():
        return None
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]))))
