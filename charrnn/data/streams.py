"""Streams: a text as `batch_size` contiguous rows, read window by window."""

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
    """T tokens of each stream and the tokens that follow them.

    Attributes:
        end: tokens of each stream (of documents: of them all) that have been read once this window is.
        full: tokens of each stream in a window here that no border of an epoch cuts short; of documents, in the mean.
        inputs: ids `(B, T)`, int64; of several processes each has windows of its own rows alone, B of them.
        targets: ids `(B, T)`, int64; `targets[b, t]` follows `inputs[b, t]` in the text, -100 nothing.
        lengths: `(B,)`, tokens of each stream that something follows; None if that is all of them.
        begins: `(B,)`, whether a stream begins a document here, from an empty state; None if none does.
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

    An epoch visits every token once, bar a tail of fewer than B tokens (`trimmed`). Its first window is cut short by a
    seeded amount, so that the borders at which gradients stop fall elsewhere in each epoch.

    The windows may start short and grow (Li et al., 2021, arXiv:2108.06084): at first there is little to learn from far
    back, and short windows bring more updates in the same time.

    Args:
        tokens: ids `(N,)` of one split.
        batch_size: streams B.
        seq_length: tokens T in a window.
        seed: start of the borders' random numbers.
        name: what errors call this split.
        seq_length_start: tokens in the very first windows; None is `seq_length`.
        seq_length_warmup_epochs: epochs in which they grow from there to `seq_length`, by doubling.

    Raises:
        CorpusError: fewer than two tokens, so that nothing follows anything.

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
        pairs = len(tokens) - 1  # each token but the last has one that follows
        self.batch_size = min(batch_size, max(1, pairs // seq_length))
        if self.batch_size < batch_size:
            warnings.warn(
                f"{name}: {len(tokens)} tokens are too few for {batch_size} streams of {seq_length}; "
                f"using {self.batch_size}",
                stacklevel=2,
            )
        self.seq_length = seq_length
        self.seq_length_start, self.seq_length_warmup_epochs = (
            min(seq_length_start or seq_length, seq_length),
            seq_length_warmup_epochs,
        )
        self.stream_length = pairs // self.batch_size
        self.trimmed = pairs % self.batch_size
        self.epoch_tokens = self.batch_size * self.stream_length
        self._seed = seed
        width = tokens.strides[0]
        # row b: the tokens of stream b, and the one that follows them
        self._rows = np.lib.stride_tricks.as_strided(
            tokens, (self.batch_size, self.stream_length + 1), (self.stream_length * width, width), writeable=False
        )

    def borders(self, epoch: int) -> list[int]:
        """Where the windows of an epoch end, in tokens of each stream; the last is `stream_length`."""
        end = int(np.random.default_rng([self._seed, epoch]).integers(1, self.length_at(epoch), endpoint=True))
        growing = []
        while (
            length := self.length_at(epoch + end / self.stream_length)
        ) < self.seq_length and end < self.stream_length:
            growing.append(end)
            end += length
        return [*growing, *range(end, self.stream_length, self.seq_length), self.stream_length]

    def length_at(self, epoch: float) -> int:
        """Tokens of each stream in a window that begins when so many epochs have been read."""
        if epoch >= self.seq_length_warmup_epochs:
            return self.seq_length
        doublings = math.ceil(math.log2(self.seq_length / self.seq_length_start))
        # by doubling, for every new length costs time: products of another size are prepared anew
        return min(self.seq_length, self.seq_length_start << int(doublings * epoch / self.seq_length_warmup_epochs))

    def windows(
        self, epoch: int, start: int = 0, device: torch.device | str = "cpu", rows: slice = ALL
    ) -> Iterator[Batch]:
        """The windows of one epoch in order, from the one that begins at token `start` of each stream.

        Their tensors, on `device`, share memory: read them, do not write. A GPU gets many windows in one copy, CUDA
        while it computes. `rows` are the streams to read.
        """
        ends, streams = self.borders(epoch), self._rows[rows]
        at_once = max(1, _AT_ONCE // (len(streams) * self.seq_length))
        for first in range(bisect.bisect_right(ends, start), len(ends), at_once):
            group = ends[first : first + at_once]
            block = torch.from_numpy(streams[:, start : group[-1] + 1].astype(np.int64))
            if torch.device(device).type == "cuda":  # only pinned memory outlives a copy that is still going on
                block = block.pin_memory().to(device, non_blocking=True)
            block = block.to(device)
            lengths = [end - begin for begin, end in pairwise([start, *group])]
            # "unsafe" only for tensors with a gradient, which ids never have; half the time of split
            inputs = torch.unsafe_split_with_sizes(block[:, :-1], lengths, dim=1)
            targets = torch.unsafe_split_with_sizes(block[:, 1:], lengths, dim=1)
            full = [self.length_at(epoch + begin / self.stream_length) for begin in [start, *group[:-1]]]
            yield from map(Batch, group, full, inputs, targets)
            start = group[-1]


_AT_ONCE = 1 << 17  # tokens turned into int64 together: many windows for the time of one, little enough for the cache


class DocumentDataset:
    """A split of documents, B of them side by side in windows of at most T tokens.

    A row that is through with its document takes the next one at the next window, from an empty state; until then it is
    padded. A document longer than T goes on in the next window with its state carried. An epoch visits every token of
    every document once, in a seeded order that differs between epochs: documents of about the same length stand side
    by side, so that little is padded.

    Args:
        tokens: ids `(N,)` of one split, the end token once before, between and after documents.
        batch_size: documents B side by side; fewer if there are not so many.
        seq_length: tokens T in a window, at most.
        end: id of the end token.
        seed: start of the order's random numbers.
        name: what errors call this split.

    Attributes:
        documents: how many there are.
        steps: windows in the first epoch; other epochs have about as many.
        padding: share of the first epoch's windows that is padding.

    Raises:
        CorpusError: there is no document.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        seq_length: int,
        end: int,
        seed: int = 0,
        name: str = "this split",
    ):
        ends = find_ends(tokens, end)
        if len(ends) < 2:
            raise CorpusError(f"{name}: expected at least one document, got none; use more documents or a larger share")
        self._tokens, self._seed = tokens, seed
        self._starts, self._lengths = ends[:-1], np.diff(ends)  # a document's last target is the end token
        self.documents = len(self._starts)
        self.batch_size, self.seq_length = min(batch_size, self.documents), seq_length
        self.stream_length = self.epoch_tokens = len(tokens) - 1  # `Batch.end` counts the tokens of all documents
        sizes = [lengths.max() for _, lengths, _ in self._schedule(0)]
        self.steps, self.padding = len(sizes), 1 - self.stream_length / (self.batch_size * int(sum(sizes)))
        self._full = self.stream_length / (self.steps * self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The documents by number, in the order in which an epoch takes them."""
        generator = np.random.default_rng([self._seed, epoch])
        shuffled = generator.permutation(self.documents)
        rest = self.documents % self.batch_size  # they come last: before, they would mix the lengths of all that follow
        pools = np.split(
            shuffled[rest:], range(_POOL * self.batch_size, self.documents - rest, _POOL * self.batch_size)
        )
        alike = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        groups = generator.permutation(alike.reshape(-1, self.batch_size))
        return np.concatenate([groups.ravel(), shuffled[:rest]])

    def _schedule(self, epoch: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
        """For each window where each row reads, how many tokens, and whether it begins a document: `(B,)` each."""
        order, taken = self.order(epoch), 0
        place, left = np.zeros((2, self.batch_size), np.int64)
        while True:
            begins = np.zeros(self.batch_size, np.bool_)
            # a last short window is worth waiting for: rows that begin together mostly end together
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
        """The windows of one epoch in order, from the one that begins when `start` tokens of all have been read."""
        done = 0
        for place, lengths, begins in self._schedule(epoch):
            if done >= start:
                columns = np.arange(lengths.max() + 1)
                block = self._tokens[np.minimum(place[rows, None] + columns, self.stream_length)].astype(np.int64)
                targets = np.where(columns[:-1] < lengths[rows, None], block[:, 1:], -100)
                tensors = (torch.from_numpy(part).to(device) for part in (block[:, :-1], targets))
                yield Batch(done + int(lengths.sum()), self._full, *tensors, lengths[rows], begins[rows])
            done += int(lengths.sum())


_POOL = 64  # batches of documents that are sorted by length together


def find_ends(tokens: Tokens, end: int, block: int = 1 << 20) -> NDArray[np.int64]:
    """Where the end token stands in `tokens`; in bounded memory."""
    places = [start + np.flatnonzero(tokens[start : start + block] == end) for start in range(0, len(tokens), block)]
    return np.concatenate(places) if places else np.zeros(0, np.int64)
