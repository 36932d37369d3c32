"""Batches: a text is cut into B contiguous streams, which are read side by side in windows of T tokens.

    the text: To be, or not to be, that is the question

               window 0          window 1          window 2
             T = 4 columns
             +---------+  state  +---------+  state  +---------+
     B = 3   | T o _ b | ------> | e , _ o | ------> | r _ n o |   stream 0
     rows    | t _ t o | ------> | _ b e , | ------> | _ t h a |   stream 1
             | t _ i s | ------> | _ t h e | ------> | _ q u e |   stream 2
             +---------+         +---------+         +---------+

     targets   o _ b e             , _ o r             _ n o t     of stream 0: the inputs, one token later

The state that the model has after a window is its state before the next one, so each stream continues where it stopped.
Gradients do not cross the borders of windows. This is truncated backpropagation through time (Williams & Peng, 1990;
Mikolov et al., 2010). Documents (`DocumentDataset`) share this layout, but each row reads one document after another,
each from an empty state.
"""

import bisect
import math
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.errors import CorpusError
from charrnn.types import Tokens


class Batch(NamedTuple):
    """A window: T tokens of each stream and the tokens that follow them.

    Attributes:
        end: tokens read up to the end of this window, of each stream or of all documents together.
        full: tokens of each stream in a window of the present length; for documents, the mean.
        inputs: ids `(B, T)`, int64. With several processes, B counts the rows of this process.
        targets: ids `(B, T)`, int64: `targets[b, t]` follows `inputs[b, t]` in the text; -100 is padding.
        lengths: `(B,)`, the tokens of each row that are not padding; None without padding.
        begins: `(B,)`, whether a row begins a document here, with an empty state; None without documents.
    """

    end: int
    full: float
    inputs: Tensor
    targets: Tensor
    lengths: NDArray[np.int64] | None = None
    begins: NDArray[np.bool_] | None = None


ALL = slice(None)


class CharDataset:
    """A split as B contiguous streams, read side by side in windows of T tokens.

    An epoch visits every token once, except fewer than B tokens at the end (`trimmed`). Its first window is shortened
    by a seeded amount, so that the borders, which stop gradients, are elsewhere in each epoch.

    The windows may start short and grow (Li et al., 2021, arXiv:2108.06084): at first there is little to learn from the
    distant past, and short windows bring more updates in the same time.

    Args:
        tokens: ids `(N,)` of one split.
        batch_size: streams B.
        seq_length: tokens T in a window.
        seed: of the shortened first windows.
        name: of this split in errors.
        seq_length_start: tokens in the first windows; None is `seq_length`.
        seq_length_warmup_epochs: epochs in which the windows double from there up to `seq_length`.

    Raises:
        CorpusError: fewer than two tokens, so nothing can be predicted.

    Warns:
        UserWarning: the split is too short for B streams of T tokens; fewer streams are used.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        seq_length: int,
        seed: int = 0,
        name: str = "this split",
        seq_length_start: int | None = None,
        seq_length_warmup_epochs: float = 0.25,
    ):
        if len(tokens) < 2:
            raise CorpusError(
                f"{name}: expected at least 2 tokens, got {len(tokens)}; use a longer text or a larger share"
            )
        pairs = len(tokens) - 1  # each token and the one that follows it
        self.batch_size = min(batch_size, max(1, pairs // seq_length))
        if self.batch_size < batch_size:
            warnings.warn(
                f"{name}: {len(tokens)} tokens are too few for {batch_size} streams of {seq_length}; "
                f"using {self.batch_size}",
                stacklevel=2,
            )
        self.seq_length = seq_length
        self.seq_length_start = min(seq_length_start or seq_length, seq_length)
        self.seq_length_warmup_epochs = seq_length_warmup_epochs
        self.stream_length = pairs // self.batch_size
        self.trimmed = pairs % self.batch_size
        self.epoch_tokens = self.batch_size * self.stream_length
        self._seed = seed
        width = tokens.strides[0]
        # row b: the tokens of stream b and the next token
        self._rows = np.lib.stride_tricks.as_strided(
            tokens, (self.batch_size, self.stream_length + 1), (self.stream_length * width, width), writeable=False
        )

    def borders(self, epoch: int) -> list[int]:
        """The ends of an epoch's windows, in tokens of each stream; the last is `stream_length`."""
        end = int(np.random.default_rng([self._seed, epoch]).integers(1, self.length_at(epoch), endpoint=True))
        growing = []
        while (
            end < self.stream_length and (length := self.length_at(epoch + end / self.stream_length)) < self.seq_length
        ):
            growing.append(end)
            end += length
        return [*growing, *range(end, self.stream_length, self.seq_length), self.stream_length]

    def length_at(self, epoch: float) -> int:
        """Tokens in a window that begins after that many epochs."""
        if epoch >= self.seq_length_warmup_epochs:
            return self.seq_length
        doublings = math.ceil(math.log2(self.seq_length / self.seq_length_start))
        # few different lengths, because the first product of each size is slow
        return min(self.seq_length, self.seq_length_start << int(doublings * epoch / self.seq_length_warmup_epochs))

    def windows(
        self, epoch: int, start: int = 0, device: torch.device | str = "cpu", rows: slice = ALL
    ) -> Iterator[Batch]:
        """The windows of one epoch in order, from the one that begins at token `start` of each stream.

        Their tensors, on `device`, share memory: read them, do not write. A GPU gets many windows in one copy, which
        overlaps with computation on CUDA. `rows` are the streams to read.
        """
        ends, streams = self.borders(epoch), self._rows[rows]
        at_once = max(1, _AT_ONCE // (len(streams) * self.seq_length))
        for first in range(bisect.bisect_right(ends, start), len(ends), at_once):
            group = ends[first : first + at_once]
            block = torch.from_numpy(streams[:, start : group[-1] + 1].astype(np.int64))
            if torch.device(device).type == "cuda":  # only pinned memory may be freed during the copy
                block = block.pin_memory().to(device, non_blocking=True)
            block = block.to(device)
            lengths = [end - begin for begin, end in pairwise([start, *group])]
            # twice as fast as split; "unsafe" only for tensors with a gradient
            inputs = torch.unsafe_split_with_sizes(block[:, :-1], lengths, dim=1)
            targets = torch.unsafe_split_with_sizes(block[:, 1:], lengths, dim=1)
            full = [self.length_at(epoch + begin / self.stream_length) for begin in [start, *group[:-1]]]
            yield from map(Batch, group, full, inputs, targets)
            start = group[-1]


_AT_ONCE = 1 << 17  # tokens converted to int64 together: many windows at once, few enough for the cache


class DocumentDataset:
    """A split of documents, B of them side by side in windows of at most T tokens.

    A row whose document has ended is padded to the end of the window and takes the next document in the next window,
    with an empty state. A document longer than T continues in the next window with its state carried. An epoch visits
    every token of every document once, in a seeded order that differs between epochs. Documents of similar length stand
    side by side, so there is little padding.

    Args:
        tokens: ids `(N,)` of one split, the end token once before, between and after documents.
        batch_size: documents B side by side; fewer if there are fewer documents.
        seq_length: largest number of tokens T in a window.
        end: id of the end token.
        seed: of the order.
        name: of this split in errors.

    Attributes:
        documents: their number.
        steps: windows in the first epoch; other epochs have about as many.
        padding: fraction of the first epoch's windows that is padding.

    Raises:
        CorpusError: there is no document.
    """

    def __init__(
        self, tokens: Tokens, batch_size: int, seq_length: int, end: int, seed: int = 0, name: str = "this split"
    ):
        ends = find_ends(tokens, end)
        if len(ends) < 2:
            raise CorpusError(f"{name}: expected at least one document, got none; use more documents or a larger share")
        self._tokens, self._seed = tokens, seed
        self._starts, self._lengths = ends[:-1], np.diff(ends)  # a document's last target is the end token
        self.documents = len(self._starts)
        self.batch_size, self.seq_length = min(batch_size, self.documents), seq_length
        self.stream_length = self.epoch_tokens = len(tokens) - 1  # as `Batch.end` counts them
        sizes = [lengths.max() for _, lengths, _ in self._schedule(0)]
        self.steps, self.padding = len(sizes), 1 - self.stream_length / (self.batch_size * int(sum(sizes)))
        self._full = self.stream_length / (self.steps * self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of the documents in the order of an epoch."""
        generator = np.random.default_rng([self._seed, epoch])
        shuffled = generator.permutation(self.documents)
        rest = self.documents % self.batch_size  # last, because before others they would mix the lengths side by side
        pool_size = _POOL * self.batch_size
        pools = np.split(shuffled[rest:], range(pool_size, self.documents - rest, pool_size))
        alike = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        groups = generator.permutation(alike.reshape(-1, self.batch_size))
        return np.concatenate([groups.ravel(), shuffled[:rest]])

    def _schedule(self, epoch: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
        """For each window: place and number of tokens of each row, and whether it begins a document, `(B,)` each."""
        order, taken = self.order(epoch), 0
        place, left = np.zeros((2, self.batch_size), np.int64)
        while True:
            begins = np.zeros(self.batch_size, np.bool_)
            # rows that begin together mostly end together, so wait for the last short window
            if not 0 < left.max() < self.seq_length:
                rows = np.flatnonzero(left == 0)[: self.documents - taken]
                documents = order[taken : taken + len(rows)]
                place[rows], left[rows], begins[rows] = self._starts[documents], self._lengths[documents], True
                taken += len(rows)
            lengths = np.minimum(left, self.seq_length)
            if not lengths.any():
                return
            yield place.copy(), lengths, begins
            place += lengths
            left -= lengths

    def windows(
        self, epoch: int, start: int = 0, device: torch.device | str = "cpu", rows: slice = ALL
    ) -> Iterator[Batch]:
        """The windows of one epoch in order, from the one that begins after `start` tokens of all documents."""
        done = 0
        for place, lengths, begins in self._schedule(epoch):
            if done >= start:
                columns = np.arange(lengths.max() + 1)
                block = self._tokens[np.minimum(place[rows, None] + columns, self.stream_length)].astype(np.int64)
                padded = np.where(columns[:-1] < lengths[rows, None], block[:, 1:], -100)
                inputs, targets = (torch.from_numpy(part).to(device) for part in (block[:, :-1], padded))
                yield Batch(done + int(lengths.sum()), self._full, inputs, targets, lengths[rows], begins[rows])
            done += int(lengths.sum())


_POOL = 64  # batches of documents that are sorted by length together


def find_ends(tokens: Tokens, end: int, block: int = 1 << 20) -> NDArray[np.int64]:
    """The places of the end token in `tokens`, in bounded memory."""
    places = [start + np.flatnonzero(tokens[start : start + block] == end) for start in range(0, len(tokens), block)]
    return np.concatenate(places) if places else np.zeros(0, np.int64)
