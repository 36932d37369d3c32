"""A text as tokens -> splits -> streams -> (B, T) windows, at any size in bounded memory.

The streams are those of truncated backpropagation through time (Williams & Peng, 1990; Mikolov et al., 2010): the text
is cut into B contiguous pieces that are read side by side, T tokens at a time, so that a state carried from one window
to the next belongs to the text that went before.
"""

import bisect
import hashlib
import json
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.config import ConfigError, DataConfig, RunConfig
from charrnn.sources import CorpusError, Source, default_data_dir, open_source, write_if_possible
from charrnn.tokenizer import (
    TOKENIZERS,
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
        tokens: ids `(N,)`, memory-mapped where the cache could be written.
        tokenizer: turns them back into text.
        sha256: of the text in UTF-8; two corpora with the same hash are the same text.
    """

    name: str
    tokens: Tokens
    tokenizer: Tokenizer
    sha256: str

    def split(self, train_frac: float = 0.9, val_frac: float = 0.05) -> "Splits":
        """The tokens in three contiguous, disjoint pieces; `test` is what the other two leave."""
        size = len(self.tokens)
        train_end = int(size * train_frac)
        val_end = size if train_frac + val_frac > 1 - 1e-9 else int(size * (train_frac + val_frac))
        return Splits(self.tokens[:train_end], self.tokens[train_end:val_end], self.tokens[val_end:])

    @property
    def characters(self) -> int:
        """Length of the text; an unknown word counts as the one character it is shown as."""
        return count_characters(self.tokenizer, self.tokens)

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that stand for something that is not in the vocabulary."""
        if self.tokenizer.unknown is None:
            return 0.0
        return token_counts(self.tokens, self.tokenizer.vocab_size)[self.tokenizer.unknown] / len(self.tokens)


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
            packed with gzip, or `-` for standard input; or all settings at once.
        tokenizer: that of a trained model, or the kind to make from this text: `char`, `byte`, `word` or `bpe`.
        data_dir: where corpora and the token cache land; None is `default_data_dir()`.
        **settings: any other field of `DataConfig`: vocab_size, min_frequency, separator, encoding, decode_errors.

    Raises:
        ConfigError: a setting is unknown or out of range.
        CorpusError: there is no such text, it cannot be fetched, is not what its encoding says, is empty, or has a
            character that `tokenizer` does not know.

    Warns:
        UserWarning: the text has more different characters than `vocab_size`; the rarest became U+FFFD.
    """
    kind = {"tokenizer": tokenizer} if isinstance(tokenizer, str) else {}
    config = data_config(data, **settings, **kind)
    given = None if isinstance(tokenizer, str) else tokenizer
    data_dir = data_dir or default_data_dir()
    try:
        corpus = _tokenized(open_source(config, data_dir), config, given, data_dir / ".cache")
    except UnknownCharacterError as error:
        raise CorpusError(f"{config.name}: {error}") from error
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
    config = RunConfig(data=data) if isinstance(data, DataConfig) else RunConfig().override({"data": str(data)})
    return config.override(settings).data


def _tokenized(source: Source, config: DataConfig, tokenizer: Tokenizer | None, cache: Path) -> Corpus:
    """The corpus out of the cache if it is there and whole, else made and cached."""
    sha256, characters = _identity(source)
    made_by = tokenizer.to_json() if tokenizer else f"{config.tokenizer} {config.vocab_size} {config.min_frequency}"
    stem = cache / hashlib.sha256(f"{sha256} {made_by}".encode()).hexdigest()[:32]
    cached = _read_cache(stem)
    if cached is None:
        if tokenizer is None:
            pieces = cut_between_words(source.pieces("learning the tokens of"))
            tokenizer = TOKENIZERS[config.tokenizer].from_text(pieces, config.vocab_size, config.min_frequency)
        cached = _encode(source, characters, tokenizer, stem), tokenizer
    return Corpus(source.name, *cached, sha256)


def _identity(source: Source) -> tuple[str, int]:
    """Hash and length of a text."""
    sha256, characters = hashlib.sha256(), 0
    for piece in source.pieces("reading"):
        sha256.update(piece.encode("utf-8", "surrogatepass"))
        characters += len(piece)
    if not characters:
        piped = "nothing came; pipe the text in again, or name a file with --data"
        why = piped if source.name == "-" else "there is nothing in it"
        raise CorpusError(f"{source.name}: expected text, got none: {why}")
    return sha256.hexdigest(), characters


def _encode(source: Source, characters: int, tokenizer: Tokenizer, stem: Path) -> Tokens:
    """Tokens of a text of so many characters, in the cache if it can be written, else in memory."""
    checksum = 0

    def blocks() -> Iterator[memoryview]:
        nonlocal checksum
        checksum = done = 0
        pieces = source.pieces("encoding")
        for piece in cut_between_words(pieces) if tokenizer.whole_words else pieces:
            try:
                block = tokenizer.encode(piece).data
            except UnknownCharacterError as error:
                raise UnknownCharacterError(error.character, done + error.position, error.vocabulary) from error
            done += len(piece)
            checksum = zlib.crc32(block, checksum)
            yield block
        if done != characters:
            raise CorpusError(
                f"{source.name}: expected {characters:,} characters as before, got {done:,}: it changed while it was "
                "read; try again"
            )

    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    _remove_leftovers(stem.parent)
    if write_if_possible(stem.with_suffix(".tokens"), blocks()):
        manifest = {"tokenizer": tokenizer.to_json(), "crc32": zlib.crc32(tokenizer.to_json().encode(), checksum)}
        if write_if_possible(stem.with_suffix(".json"), [json.dumps(manifest).encode()]):
            return np.memmap(stem.with_suffix(".tokens"), dtype, mode="r")
    return np.frombuffer(b"".join(blocks()), dtype)


def _read_cache(stem: Path) -> tuple[Tokens, Tokenizer] | None:
    """What `_encode` kept: `.tokens` holds the ids and `.json`, written last, the tokenizer and a checksum of both."""
    try:
        manifest = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        checksum = 0
        with open(stem.with_suffix(".tokens"), "rb", buffering=0) as file:
            while block := file.read(1 << 17):
                checksum = zlib.crc32(block, checksum)
        if zlib.crc32(manifest["tokenizer"].encode(), checksum) != manifest["crc32"]:
            return None
        tokenizer = tokenizer_from_json(manifest["tokenizer"])
        return np.memmap(stem.with_suffix(".tokens"), np.min_scalar_type(tokenizer.vocab_size - 1), mode="r"), tokenizer
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent or damaged: it is made again


def _remove_leftovers(cache: Path, age: float = 86400.0) -> None:
    """Files that a process was killed at writing, at least a day ago."""
    for path in cache.glob(".*"):
        if path.is_file() and time.time() - path.stat().st_mtime > age:
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ tokens -> windows


class Window(NamedTuple):
    """T tokens of each stream and the tokens that follow them.

    Attributes:
        end: tokens of each stream that have been read once this window is.
        inputs: ids `(B, T)`, int64.
        targets: ids `(B, T)`, int64; `targets[b, t]` follows `inputs[b, t]` in the text.
    """

    end: int
    inputs: Tensor
    targets: Tensor


class CharDataset:
    """A split as B contiguous streams, read side by side in windows of T tokens.

    An epoch visits every token once, bar a tail of fewer than B tokens (`trimmed`). Its first window is cut short by a
    seeded amount, so that the borders at which gradients stop fall elsewhere in each epoch.

    Args:
        tokens: ids `(N,)` of one split.
        batch_size: streams B.
        seq_length: tokens T in a window.
        seed: start of the borders' random numbers.
        name: what errors call this split.

    Raises:
        CorpusError: fewer than two tokens, so that nothing follows anything.

    Warns:
        UserWarning: the split is too short for B streams of T tokens; fewer streams are used.
    """

    def __init__(self, tokens: Tokens, batch_size: int, seq_length: int, seed: int = 0, name: str = "this split"):
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
        self.stream_length = pairs // self.batch_size
        self.trimmed = pairs % self.batch_size
        self._seed = seed
        width = tokens.strides[0]
        # row b: the tokens of stream b, and the one that follows them
        self._rows = np.lib.stride_tricks.as_strided(
            tokens, (self.batch_size, self.stream_length + 1), (self.stream_length * width, width), writeable=False
        )

    def borders(self, epoch: int) -> list[int]:
        """Where the windows of an epoch end, in tokens of each stream; the last is `stream_length`."""
        first = int(np.random.default_rng([self._seed, epoch]).integers(1, self.seq_length, endpoint=True))
        return [*range(first, self.stream_length, self.seq_length), self.stream_length]

    def windows(self, epoch: int, start: int = 0) -> Iterator[Window]:
        """The windows of one epoch in order, from the one that begins at token `start` of each stream.

        Their tensors share memory: read them, do not write.
        """
        ends = self.borders(epoch)
        at_once = max(1, _AT_ONCE // (self.batch_size * self.seq_length))
        for first in range(bisect.bisect_right(ends, start), len(ends), at_once):
            group = ends[first : first + at_once]
            block = torch.from_numpy(self._rows[:, start : group[-1] + 1].astype(np.int64))
            lengths = [end - begin for begin, end in pairwise([start, *group])]
            # "unsafe" only for tensors with a gradient, which ids never have; half the time of split
            inputs = torch.unsafe_split_with_sizes(block[:, :-1], lengths, dim=1)
            targets = torch.unsafe_split_with_sizes(block[:, 1:], lengths, dim=1)
            yield from map(Window, group, inputs, targets)
            start = group[-1]


_AT_ONCE = 1 << 17  # tokens turned into int64 together: many windows for the time of one, little enough for the cache


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
    return float(-(frequency * np.log2(frequency)).sum())


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
