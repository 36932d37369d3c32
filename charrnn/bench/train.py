"""How fast training is as a whole, beside the two programs that a user would write instead.

All three train the same network, an embedding of size V, stacked LSTM layers and a linear read-out, on the same text
with AdamW and clipped gradients, without dropout:

- ours: the library's `Trainer`, which chooses precision and backend by itself;
- the plain loop: PyTorch's `nn.LSTM` on contiguous streams, the state carried and detached, the loss read at each step;
- the usual windows: the same model on windows of T characters, one starting at each character of the text, shuffled by
  a `DataLoader`, the state empty at the start of each.

A window of the last kind shares all of its characters but one with its neighbour. So two speeds are measured:
characters through the network, and characters of the text, those not yet read in the same pass over it. For the first
two programs they are the same; the usual windows bring one new character each.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from charrnn.api import Run
from charrnn.bench.processes import answer, measure_apart
from charrnn.config import RunConfig
from charrnn.corpus import load_corpus
from charrnn.sources import CorpusError
from charrnn.training import Stepped

Shape = tuple[int, int, int, int]  # num_layers, hidden_size, batch_size, seq_length
SHAPES: tuple[Shape, ...] = ((2, 128, 50, 50), (1, 384, 32, 64))
NEVER = 2**40  # steps
RATE, WEIGHT_DECAY, LARGEST_NORM = 2e-3, 1e-5, 5.0

# ------------------------------------------------------------------------------------ what a user would write instead


class PlainLSTM(nn.Module):
    """An embedding as wide as the vocabulary, `nn.LSTM`, a linear read-out."""

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, vocab_size)
        self.lstm = nn.LSTM(vocab_size, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits `(B, T, V)` for `tokens` `(B, T)`, and the state."""
        outputs, state = self.lstm(self.embedding(tokens), state)
        return self.head(outputs), state


class Windows(Dataset):
    """A window of T tokens and the ones that follow them, starting at each place of the text."""

    def __init__(self, tokens: Tensor, seq_length: int):
        self.tokens, self.seq_length = tokens, seq_length

    def __len__(self) -> int:
        return len(self.tokens) - self.seq_length

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        end = start + self.seq_length
        return self.tokens[start:end], self.tokens[start + 1 : end + 1]


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, state: Any = None) -> Any:
    logits, state = model(x, state)
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
    optimizer.step()
    loss.item()  # as it is written everywhere, for the progress bar
    return state


def _plain(tokens: Tensor, vocab_size: int, shape: Shape) -> tuple[nn.Module, torch.optim.Optimizer]:
    num_layers, hidden_size, batch_size, seq_length = shape
    if len(tokens) <= batch_size * seq_length:
        raise CorpusError(f"expected more than {batch_size * seq_length:,} tokens to train on, got {len(tokens):,}")
    model = PlainLSTM(vocab_size, hidden_size, num_layers)
    return model, torch.optim.AdamW(model.parameters(), RATE, weight_decay=WEIGHT_DECAY)


def plain_loop(tokens: Tensor, vocab_size: int, shape: Shape) -> Iterator[tuple[int, int]]:
    """Train with the plain loop; of each step, the characters through the network and those new in the text."""
    model, optimizer = _plain(tokens, vocab_size, shape)
    batch_size, seq_length = shape[2:]
    length = (len(tokens) - 1) // batch_size
    inputs = tokens[: batch_size * length].view(batch_size, length)
    targets = tokens[1 : batch_size * length + 1].view(batch_size, length)
    while True:
        state = None
        for start in range(0, length - seq_length + 1, seq_length):
            window = slice(start, start + seq_length)
            state = _update(model, optimizer, inputs[:, window], targets[:, window], state)
            state = tuple(each.detach() for each in state)
            yield batch_size * seq_length, batch_size * seq_length


def usual_windows(tokens: Tensor, vocab_size: int, shape: Shape) -> Iterator[tuple[int, int]]:
    """Train on shuffled windows; of each step, the characters through the network and those new in the text."""
    model, optimizer = _plain(tokens, vocab_size, shape)
    batch_size, seq_length = shape[2:]
    while True:
        for x, y in DataLoader(Windows(tokens, seq_length), batch_size, shuffle=True):
            _update(model, optimizer, x, y)
            yield x.numel(), len(x)


# --------------------------------------------------------------------------------------------------------------- ours


def _config(data: str, shape: Shape) -> RunConfig:
    num_layers, hidden_size, batch_size, seq_length = shape
    settings = {"data": data, "num_layers": num_layers, "hidden_size": hidden_size, "dropout": 0.0}
    settings |= {"batch_size": batch_size, "seq_length": seq_length, "max_steps": NEVER, "eval_interval": NEVER}
    settings |= {"learning_rate": RATE, "weight_decay": WEIGHT_DECAY, "grad_clip": LARGEST_NORM, "device": "cpu"}
    return RunConfig().override(settings)


def ours(run: Run) -> Iterator[tuple[int, int]]:
    """Train with the library; of each step, the characters through the network and those new in the text."""
    trainer = run.trainer
    epoch_length = trainer.dataset.epoch_tokens
    before = 0.0
    for event in trainer:
        if isinstance(event, Stepped):
            characters = round((event.epoch - before) * epoch_length)
            before = event.epoch
            yield characters, characters


# -------------------------------------------------------------------------------------------------------- to measure


def measure(contender: str, data: str, shape: Shape, seconds: float) -> dict[str, Any]:
    """Train for `seconds` after a short start that does not count.

    Args:
        contender: `ours`, `plain loop` or `usual windows`.
        data: a corpus.
        shape: (num_layers, hidden_size, batch_size, seq_length).
        seconds: to measure.

    Returns:
        `through` the network and `text`, characters per second; of ours also the `precision` and `backend` chosen.
    """
    config = _config(data, shape)
    if contender == "ours":
        run = Run.start(config)
        speed = _speed(ours(run), seconds)
        progress = run.trainer.progress
        return {**speed, "precision": progress.precision, "backend": progress.backend}
    corpus = load_corpus(config.data)
    tokens = torch.from_numpy(corpus.split(config.data.train_frac, config.data.val_frac).train.astype("int64"))
    train = {"plain loop": plain_loop, "usual windows": usual_windows}[contender]
    torch.manual_seed(config.device.seed)
    return _speed(train(tokens, corpus.tokenizer.vocab_size, shape), seconds)


def _speed(steps: Iterator[tuple[int, int]], seconds: float) -> dict[str, float]:
    """Characters per second of `steps`, those of the first tenth of the time and at least three left out."""
    begin = time.perf_counter()
    for _ in range(3):
        next(steps)
    while time.perf_counter() - begin < seconds / 10:
        next(steps)
    through = text = 0
    begin = time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds or not through:
        step = next(steps)
        through, text = through + step[0], text + step[1]
    return {"through": through / spent, "text": text / spent}


CONTENDERS = ("ours", "plain loop", "usual windows")


def compare(
    data: str = "shakespeare",
    shapes: Sequence[Shape] = SHAPES,
    rounds: int = 3,
    seconds: float = 10.0,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> list[dict[str, Any]]:
    """Characters per second of the three on the CPU, by turns, each time in a process of its own; medians.

    Args:
        data: a corpus name or path.
        shapes: (num_layers, hidden_size, batch_size, seq_length) each.
        rounds: turns that each contender has.
        seconds: measured in each turn.
        progress: wraps the loop over the turns, as `tqdm` does.

    Returns:
        For each shape a row: `shape`; under each contender's name `through` and `text`, in characters per second, and
        of ours `precision` and `backend`; and `times_faster`, ours by each other, again `through` and `text`.

    Raises:
        CorpusError: the text cannot be had or is too short.
        MeasurementError: a process failed.
    """
    load_corpus(_config(data, SHAPES[0]).data)  # prepared once, for all of them
    turns = [(shape, contender) for shape in shapes for _ in range(rounds) for contender in CONTENDERS]
    results: dict[Any, list[dict[str, Any]]] = {turn: [] for turn in turns}
    for shape, contender in progress(turns):
        arguments = {"contender": contender, "data": data, "shape": shape, "seconds": seconds}
        results[shape, contender].append(measure_apart(__name__, **arguments))
    return [_row(shape, {name: results[shape, name] for name in CONTENDERS}) for shape in shapes]


def _row(shape: Shape, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians: dict[str, Any] = {
        name: {**each[-1], **{unit: statistics.median(turn[unit] for turn in each) for unit in ("through", "text")}}
        for name, each in results.items()
    }
    mine, *others = CONTENDERS
    times = {name: {unit: medians[mine][unit] / medians[name][unit] for unit in ("through", "text")} for name in others}
    return {"shape": list(shape), **medians, "times_faster": times}


if __name__ == "__main__":
    answer(measure)
