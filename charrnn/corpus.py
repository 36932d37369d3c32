"""A text as tokens -> splits -> streams -> (B, T) windows, at any size in bounded memory.

The streams are those of truncated backpropagation through time (Williams & Peng, 1990; Mikolov et al., 2010): the text
is cut into B contiguous pieces that are read side by side, T tokens at a time, so that a state carried from one window
to the next belongs to the text that went before.
"""

import bisect
import contextlib
import hashlib
import json
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.config import ConfigError, DataConfig, RunConfig
from charrnn.sources import CorpusError, Source, absolute_name, default_data_dir, open_source, write_if_possible
from charrnn.tokenizer import (
    END_OF_DOCUMENT,
    SPELLING,
    TOKENIZERS,
    DocumentTokenizer,
    Tokenizer,
    UnknownCharacterError,
    count_characters,
    cut_between_words,
    tokenizer_from_json,
)

Tokens = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Corpus:
    """A text as tokens.

    Attributes:
        name: what the user called it, a corpus name or a path.
        tokens: ids `(N,)`, memory-mapped where the cache could be written. Of documents, the end token stands once
            before, between and after them.
        tokenizer: turns them back into text.
        sha256: of the text in UTF-8, for byte tokens of the bytes, with the byte FF at the ends of documents; the same
            hash means the same text.
        spelling: what each unknown token stands for, `(n,)` as `Tokenizer.spelling` has it.
        val: the text to choose by, if it is one of its own.
    """

    name: str
    tokens: Tokens = field(compare=False)
    tokenizer: Tokenizer
    sha256: str
    spelling: NDArray[np.void] | None = field(default=None, compare=False)
    val: "Corpus | None" = None

    @property
    def end(self) -> int | None:
        """Id of the end token; None if the text is not of documents."""
        return self.tokenizer.end if self.tokens[:1].tolist() == [self.tokenizer.end] else None

    def split(self, train_frac: float = 0.9, val_frac: float = 0.05) -> "Splits":
        """The tokens in three contiguous, disjoint pieces; `test` is what the other two leave.

        Documents stay whole. The end token between two splits is the last of the one and the first of the other.
        Where the text to choose by is one of its own, it is all of `val`, and `val_frac` is not used.
        """
        train, val, test = (self.tokens[start:stop] for start, stop in self._borders(train_frac, val_frac))
        return Splits(train, val if self.val is None else self.val.tokens, test)

    def _borders(self, train_frac: float, val_frac: float) -> list[tuple[int, int]]:
        """Where each split starts and stops."""
        size = len(self.tokens)
        val_frac = val_frac if self.val is None else 0.0
        train_end = int(size * train_frac)
        val_end = size if train_frac + val_frac > 1 - 1e-9 else int(size * (train_frac + val_frac))
        if self.end is None:
            return [(0, train_end), (train_end, val_end), (val_end, size)]
        ends = find_ends(self.tokens, self.end)
        train_end, val_end = (int(ends[np.abs(ends - place).argmin()]) for place in (train_end, val_end))
        return [(0, train_end + 1), (train_end, val_end + 1), (val_end, size)]

    def extent(self, start: int = 0, stop: int | None = None) -> "Extent":
        """How much text `tokens[start:stop]` is.

        Raises:
            CorpusError: a token is unknown, and `spelling` does not say what it stands for.
        """
        tokens, unknown = self.tokens[start:stop], self.tokenizer.unknown
        characters = count_characters(self.tokenizer, tokens)
        if unknown is None:
            return Extent(len(tokens), characters, 0.0)
        before, here = (
            token_counts(part, self.tokenizer.vocab_size)[unknown] for part in (self.tokens[:start], tokens)
        )
        if here and self.spelling is None:
            raise CorpusError(
                f"{self.name}: expected to know what its unknown tokens stand for; make it with load_corpus"
            )
        spelled = self.spelling[before : before + here] if here else np.empty(0, SPELLING)
        characters += int(spelled["characters"].sum()) - int(here)
        return Extent(len(tokens), characters, float(spelled["bits"].sum(dtype=np.float64)))

    def predicted(self, split: str = "all", train_frac: float = 0.9, val_frac: float = 0.05) -> "Extent":
        """How much text a model predicts of a split, or of all: everything but its first token."""
        if split == "val" and self.val is not None:
            return self.val.predicted()
        borders = [*self._borders(train_frac, val_frac), (0, len(self.tokens))]
        start, stop = dict(zip([*Splits._fields, "all"], borders, strict=True))[split]
        return self.extent(min(start + 1, stop), stop)

    @property
    def characters(self) -> int:
        """Length of the text; what is unknown counts in full."""
        return self.extent().characters

    @cached_property
    def unknown_share(self) -> float:
        """Share of the tokens that stand for something that is not in the vocabulary."""
        if self.tokenizer.unknown is None:
            return 0.0
        return token_counts(self.tokens, self.tokenizer.vocab_size)[self.tokenizer.unknown] / len(self.tokens)


class Extent(NamedTuple):
    """How much text some tokens are."""

    tokens: int
    characters: int  # what is unknown counts in full
    spelling: float  # bits that it takes to spell what is unknown

    def bpc(self, bits: float) -> float:
        """Bits per character of a model that takes `bits` per token, the spelling charged on top.

        This compares models with any tokens: it is the size of the whole text, compressed without loss.
        """
        return (bits * self.tokens + self.spelling) / self.characters


class Splits(NamedTuple):
    """Token ids to learn from, to choose by, and to report on once."""

    train: Tokens
    val: Tokens
    test: Tokens


# ------------------------------------------------------------------------------------------------ text -> tokens


def load_corpus(
    data: str | Path | DataConfig = "shakespeare",
    tokenizer: Tokenizer | str | None = None,
    data_dir: Path | None = None,
    **settings: Any,
) -> Corpus:
    """A text as tokens, made once and kept in a cache.

    Args:
        data: a name from `corpus_names()`, or the path of a text file, a folder of `.txt` files or a glob, any of them
            packed with gzip, bzip2 or xz, or `-` for standard input; or all settings at once.
        tokenizer: that of a trained model, or the kind to make from this text: `char`, `byte`, `word` or `bpe`.
        data_dir: where corpora and the token cache land; None is `default_data_dir()`.
        **settings: any other field of `DataConfig`: vocab_size, min_frequency, documents, separator, encoding,
            decode_errors, val_data. The vocabulary is made from the text to choose by, too.

    Raises:
        ConfigError: a setting is unknown or out of range, or `tokenizer` has no end token for documents.
        CorpusError: there is no such text, it cannot be fetched, is not what its encoding says, is empty, or has a
            character that `tokenizer` does not know.

    Warns:
        UserWarning: the text has more different characters than `vocab_size`; the rarest became U+FFFD.
    """
    kind = {"tokenizer": tokenizer} if isinstance(tokenizer, str) else {}
    config = data_config(data, **settings, **kind)
    given = None if isinstance(tokenizer, str) else tokenizer
    if given is not None:
        config = config.model_copy(update={"tokenizer": given.kind})
    data_dir = data_dir or default_data_dir()
    names = [config.name] if config.val_data is None else [config.name, config.val_data]
    sources = [open_source(config.model_copy(update={"name": name}), data_dir) for name in names]
    corpus, *val = _tokenized(sources, config, given, data_dir / ".cache")
    corpus = replace(corpus, val=val[0] if val else None)
    if given is None and config.min_frequency == 1 and config.tokenizer == "char" and corpus.unknown_share:
        warnings.warn(
            f"{config.name}: more than {config.vocab_size:,} different characters; the rarest became U+FFFD, "
            f"{corpus.unknown_share:.2%} of the text; raise --vocab-size to keep them, or take --tokenizer byte or bpe",
            stacklevel=2,
        )
    return corpus


def data_config(data: str | Path | DataConfig, **settings: Any) -> DataConfig:
    """The settings of a text: those of `data`, or the defaults for the text of that name, with `settings` on top.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    for name in settings:
        if name not in DataConfig.model_fields:
            raise ConfigError(f"unknown data setting {name!r}; expected one of {', '.join(DataConfig.model_fields)}")
    if isinstance(data, Path):
        data = absolute_name(data)
    config = RunConfig(data=data) if isinstance(data, DataConfig) else RunConfig().override({"data": data})
    return config.override(settings).data


# The cache holds, for each text, `<key>.vocabulary` with the tokenizer that some settings made from it. For each
# tokenizer it holds `<key>.tokens` with the ids, `<key>.spelling` with what is unknown, and `<key>.json`, written last,
# with the name of the text and the checksums of both. Each is checked before it is used, and made again if damaged.


def _tokenized(sources: Sequence[Source], config: DataConfig, tokenizer: Tokenizer | None, cache: Path) -> list[Corpus]:
    """The texts in the tokens of `tokenizer`, or of the one that is made from them all."""
    if sources[0].documents and tokenizer is not None and tokenizer.end is None:
        raise ConfigError(
            "data.documents (--documents): expected a model that was trained on documents, got one without end token"
        )
    hashes = [_hash(source) for source in sources]
    _remove_leftovers(cache)
    tokenizer = tokenizer or _vocabulary(sources, config, cache, " ".join(hashes))
    return [_encoded(source, tokenizer, cache, sha256) for source, sha256 in zip(sources, hashes, strict=True)]


def _encoded(source: Source, tokenizer: Tokenizer, cache: Path, sha256: str) -> Corpus:
    """The corpus out of the cache if it is there and whole, else made and cached.

    Raises:
        CorpusError: a character that the tokenizer does not know, or the text changes while it is read.
    """
    stem = cache / _key(sha256, tokenizer.to_json())
    about = stem.with_suffix(".json")
    end = [tokenizer.end] if source.documents else []
    parts = {"tokens": (tokenizer.encode, np.array(end, np.min_scalar_type(tokenizer.vocab_size - 1)))}
    if tokenizer.unknown is not None:
        parts["spelling"] = (tokenizer.spelling, np.empty(0, SPELLING))
    paths = {name: stem.with_suffix(f".{name}") for name in parts}
    if _read_json(about).get("crc32") != {name: _checksum(path) for name, path in paths.items()}:
        made = {name: _Encoding(source, *part, tokenizer.whole_words, sha256) for name, part in parts.items()}
        kept = [write_if_possible(path, made[name]) for name, path in paths.items()]
        said = {"text": absolute_name(source.name), "tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
        said["crc32"] = {name: encoding.checksum for name, encoding in made.items()}
        if not (all(kept) and write_if_possible(about, [json.dumps(said).encode()])):
            arrays = {name: np.frombuffer(b"".join(made[name]), part[1].dtype) for name, part in parts.items()}
            return Corpus(source.name, tokenizer=tokenizer, sha256=sha256, **arrays)
    arrays = {name: _mapped(path, parts[name][1].dtype) for name, path in paths.items()}
    return Corpus(source.name, tokenizer=tokenizer, sha256=sha256, **arrays)


def _mapped(path: Path, dtype: np.dtype) -> NDArray[Any]:
    """A file as an array; an empty one cannot be mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _hash(source: Source) -> str:
    """SHA-256 of a text in UTF-8; the ends of documents are byte FF, which UTF-8 never has."""
    name, sha256, characters = source.name, hashlib.sha256(), 0
    for piece in source.pieces("reading"):
        for number, text in enumerate(_cut_at_ends(source, piece)):
            try:
                sha256.update(b"\xff" * (number > 0) + source.encode(text))
            except UnicodeEncodeError as error:
                raise CorpusError(
                    f"{name}: expected text, got half a character, U+{ord(text[error.start]):04X}, at position "
                    f"{characters + error.start:,}; drop it, or name another encoding"
                ) from error
            characters += len(text)
    if not characters:
        piped = "nothing came; pipe the text in again, or name a file with --data"
        raise CorpusError(f"{name}: expected text, got none: {piped if name == '-' else 'there is nothing in it'}")
    return sha256.hexdigest()


def _vocabulary(sources: Sequence[Source], config: DataConfig, cache: Path, sha256: str) -> Tokenizer:
    """The tokenizer that the settings make from some texts."""
    settings = f"{config.tokenizer} {config.vocab_size} {config.min_frequency}"
    path = cache / f"{_key(sha256, settings)}.vocabulary"
    kept = _read(path)
    try:
        if kept and zlib.crc32(kept[8:]) == int(kept[:8], 16):
            return tokenizer_from_json(kept[8:].decode())
    except ValueError:
        pass  # damaged: it is made again
    kind = TOKENIZERS[config.tokenizer]
    pieces = (
        text
        for source in sources
        for piece in _pieces(source, "learning the tokens of", kind.whole_words)
        for text in _cut_at_ends(source, piece)
        if text
    )
    tokenizer = kind.from_text(pieces, config.vocab_size, config.min_frequency)
    if sources[0].documents:
        tokenizer = DocumentTokenizer(tokenizer)
    data = tokenizer.to_json().encode()
    write_if_possible(path, [b"%08x" % zlib.crc32(data), data])
    return tokenizer


def _pieces(source: Source, doing: str, whole_words: bool) -> Iterator[str]:
    """A source's pieces, cut between words where that matters."""
    return cut_between_words(source.pieces(doing)) if whole_words else source.pieces(doing)


def _cut_at_ends(source: Source, piece: str) -> list[str]:
    return piece.split(END_OF_DOCUMENT) if source.documents else [piece]


class _Encoding:
    """The bytes of what `encode` makes of a text, block by block; `checksum` is their CRC-32, once all were taken.

    What is `between` stands where documents end.
    """

    def __init__(
        self,
        source: Source,
        encode: Callable[[str], NDArray[Any]],
        between: NDArray[Any],
        whole_words: bool,
        sha256: str,
    ):
        self._source, self._encode, self._between = source, encode, between
        self._whole_words, self._sha256 = whole_words, sha256
        self.checksum = 0

    def __iter__(self) -> Iterator[memoryview]:
        self.checksum = done = 0
        sha256 = hashlib.sha256()
        for piece in _pieces(self._source, "encoding", self._whole_words):
            blocks = []
            for number, text in enumerate(_cut_at_ends(self._source, piece)):
                sha256.update(b"\xff" * (number > 0) + self._source.encode(text))
                try:
                    blocks += [self._between, self._encode(text)] if number else [self._encode(text)]
                except UnknownCharacterError as error:
                    where = UnknownCharacterError(error.character, done + error.position, error.vocabulary)
                    raise CorpusError(f"{self._source.name}: {where}") from error
                done += len(text)
            block = (np.concatenate(blocks) if len(blocks) > 1 else blocks[0]).data
            self.checksum = zlib.crc32(block, self.checksum)
            yield block
        if sha256.hexdigest() != self._sha256:
            raise CorpusError(f"{self._source.name}: expected the same text as a moment ago, got another; try again")


def _key(sha256: str, made_by: str) -> str:
    return hashlib.sha256(f"{sha256} {made_by}".encode()).hexdigest()[:32]


class CachedText(NamedTuple):
    """The tokens that one tokenizer made of one text, as the cache keeps them."""

    text: str  # a corpus name or a path
    tokenizer: str  # its kind
    vocab_size: int
    bytes: int  # on disk
    files: str  # which, as a glob


def cached_texts(data_dir: Path | None = None) -> list[CachedText]:
    """What is in the token cache, the largest first; vocabularies and what a crash left have no text."""
    folder = (data_dir or default_data_dir()) / ".cache"
    groups: dict[str, list[Path]] = {}
    for path in folder.glob("*"):
        groups.setdefault(path.stem, []).append(path)
    found = []
    for stem, paths in groups.items():
        about = _read_json(folder / f"{stem}.json")
        size = sum(path.stat().st_size for path in paths)
        values = [about.get(name, none) for name, none in (("text", ""), ("tokenizer", ""), ("vocab_size", 0))]
        found.append(CachedText(*values, size, str(folder / f"{stem}.*")))
    return sorted(found, key=lambda text: -text.bytes)


def clear_cache(data_dir: Path | None = None) -> int:
    """Remove the token cache; texts are turned into tokens again when they are next used.

    Returns:
        The bytes that it took.

    Raises:
        OSError: a file cannot be removed, as on Windows where a run uses it.
    """
    size = 0
    for path in ((data_dir or default_data_dir()) / ".cache").glob("*"):
        size += path.stat().st_size
        path.unlink()
    return size


def _read(path: Path) -> bytes:
    """What a file of the cache holds; nothing if it is not there."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read_json(path: Path) -> dict[str, Any]:
    """The values in a file of the cache; none if it is not there or damaged."""
    with contextlib.suppress(ValueError):
        if isinstance(values := json.loads(_read(path) or b"{}"), dict):
            return values
    return {}


def _checksum(path: Path) -> int | None:
    """CRC-32 of a file; none if it is not there."""
    checksum = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 17):
                checksum = zlib.crc32(block, checksum)
    except OSError:
        return None
    return checksum


def _remove_leftovers(cache: Path, age: float = 86400.0) -> None:
    """Files that a process was killed at writing, at least a day ago."""
    for path in cache.glob(".*"):
        with contextlib.suppress(OSError):  # another process may be at it, too
            if time.time() - path.stat().st_mtime > age:
                path.unlink()


# ------------------------------------------------------------------------------------------------ tokens -> windows


class Window(NamedTuple):
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
        start_length: tokens in the very first windows; None is `seq_length`.
        growth: epochs in which they grow from there to `seq_length`, by doubling.

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
        start_length: int | None = None,
        growth: float = 0.25,
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
        self.start_length, self.growth = min(start_length or seq_length, seq_length), growth
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
        if epoch >= self.growth:
            return self.seq_length
        doublings = math.ceil(math.log2(self.seq_length / self.start_length))
        # by doubling, for every new length costs time: products of another size are prepared anew
        return min(self.seq_length, self.start_length << int(doublings * epoch / self.growth))

    def windows(
        self, epoch: int, start: int = 0, device: torch.device | str = "cpu", rows: slice = ALL
    ) -> Iterator[Window]:
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
            yield from map(Window, group, full, inputs, targets)
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
        self.stream_length = self.epoch_tokens = len(tokens) - 1  # `Window.end` counts the tokens of all documents
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
    ) -> Iterator[Window]:
        """The windows of one epoch in order, from the one that begins when `start` tokens of all have been read."""
        done = 0
        for place, lengths, begins in self._schedule(epoch):
            if done >= start:
                columns = np.arange(lengths.max() + 1)
                block = self._tokens[np.minimum(place[rows, None] + columns, self.stream_length)].astype(np.int64)
                targets = np.where(columns[:-1] < lengths[rows, None], block[:, 1:], -100)
                tensors = (torch.from_numpy(part).to(device) for part in (block[:, :-1], targets))
                yield Window(done + int(lengths.sum()), self._full, *tensors, lengths[rows], begins[rows])
            done += int(lengths.sum())


_POOL = 64  # batches of documents that are sorted by length together


def find_ends(tokens: Tokens, end: int, block: int = 1 << 20) -> NDArray[np.int64]:
    """Where the end token stands in `tokens`; in bounded memory."""
    places = [start + np.flatnonzero(tokens[start : start + block] == end) for start in range(0, len(tokens), block)]
    return np.concatenate(places) if places else np.zeros(0, np.int64)


# ------------------------------------------------------------------------------------------------ statistics


def token_counts(tokens: Tokens, vocab_size: int, block: int = 1 << 20) -> NDArray[np.int64]:
    """How often each token occurs, `(V,)`; in bounded memory."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return counts


def entropy(tokens: Tokens) -> float:
    """Bits per token if each were drawn alone, with the frequencies it has in `tokens` (Shannon, 1948).

    Raises:
        ValueError: there are no tokens.
    """
    if not len(tokens):
        raise ValueError("expected at least one token, got none")
    frequency = token_counts(tokens, int(tokens.max()) + 1) / len(tokens)
    frequency = frequency[frequency > 0]
    return 0.0 - float((frequency * np.log2(frequency)).sum())  # not the negative: it makes a -0.0 of certainty


def commonest(corpus: Corpus, count: int = 10) -> list[tuple[str, int]]:
    """The `count` commonest tokens as text and how often each stands in the corpus."""
    counts = token_counts(corpus.tokens, corpus.tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")[:count]
    return [(corpus.tokenizer.decode([token]), int(counts[token])) for token in order if counts[token]]


class TextShape(NamedTuple):
    """How large a text is, in every unit."""

    characters: int
    bytes: int  # in UTF-8
    words: int  # between spaces
    lines: int
    longest_line: int  # characters, without its end


def describe_text(pieces: Iterable[str]) -> TextShape:
    """The shape of a text that comes in pieces."""
    characters = size = words = lines = longest = line = 0
    in_word = False
    for piece in pieces:
        characters += len(piece)
        try:
            size += len(piece.encode("utf-8", "surrogateescape"))  # as a byte tokenizer reads files
        except UnicodeEncodeError:
            size += len(piece.encode("utf-8", "surrogatepass"))
        words += len(piece.split()) - (in_word and not piece[0].isspace())  # a word goes on across the border
        in_word = not piece[-1].isspace()
        first, *others = piece.split("\n")
        line += len(first)
        if others:
            longest = max(longest, line, *map(len, others[:-1]))
            line = len(others[-1])
            lines += len(others)
    return TextShape(characters, size, words, lines + (line > 0), max(longest, line))
