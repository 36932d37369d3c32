"""A text as tokens -> splits -> streams -> (B, T) windows, at any size in bounded memory.

The streams are those of truncated backpropagation through time (Williams & Peng, 1990; Mikolov et al., 2010): the text
is cut into B contiguous pieces that are read side by side, T tokens at a time, so that a state carried from one window
to the next belongs to the text that went before.
"""

import contextlib
import hashlib
import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.config import DataConfig, RunConfig
from charrnn.data.corpora import absolute_name, default_data_dir, open_source
from charrnn.data.files import Source, write_if_possible
from charrnn.data.statistics import token_counts
from charrnn.data.streams import find_ends
from charrnn.data.tokenizer import (
    END_OF_DOCUMENT,
    SPELLING,
    TOKENIZERS,
    DocumentTokenizer,
    Tokenizer,
    count_characters,
    cut_between_words,
    tokenizer_from_json,
)
from charrnn.errors import ConfigError, CorpusError, UnknownCharacterError
from charrnn.types import Tokens


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
