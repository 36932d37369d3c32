"""A text as token ids, cached and memory-mapped, in three splits.

Texts of any size are tokenized in bounded memory. The cache, `.cache` in the data folder, holds for each text
`<key>.vocabulary`, the tokenizer that some settings made from it. For each tokenizer it holds `<key>.tokens`, the ids,
`<key>.spelling`, the text of the unknown tokens, and `<key>.json`, which tells people what these files are. Each of the
first three ends with its checksum, and is made again if that is wrong.
"""

import contextlib
import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.atomic import Blocks, remove_leftovers
from charrnn.config import DataConfig, RunConfig, refuse_unknown
from charrnn.data.corpora import absolute_name, default_data_dir, open_source, write_if_possible
from charrnn.data.files import Source
from charrnn.data.statistics import token_counts
from charrnn.data.streams import find_ends
from charrnn.data.tokenizer import (
    SPELLING,
    TOKENIZERS,
    DocumentTokenizer,
    Tokenizer,
    count_characters,
    tokenizer_from_json,
)
from charrnn.errors import ConfigError, CorpusError, UnknownCharacterError
from charrnn.types import Tokens

STALE = 24 * 3600  # seconds after which a temporary file of the cache must be a killed process's


@dataclass(frozen=True)
class Corpus:
    """A text as tokens.

    Attributes:
        name: the corpus name or path that the user gave.
        tokens: ids `(N,)`, memory-mapped if the cache could be written. In a text of documents, the end token stands
            once before, between and after them.
        tokenizer: turns them back into text.
        sha256: of the text, see `Source.sha256`.
        spelling: the size of each unknown token's text, `(n,)`, see `Tokenizer.spelling`.
        val: the separate validation text, if there is one.
    """

    name: str
    tokens: Tokens = field(compare=False)
    tokenizer: Tokenizer
    sha256: str
    spelling: NDArray[np.void] | None = field(default=None, compare=False)
    val: "Corpus | None" = None

    @property
    def end(self) -> int | None:
        """Id of the end token; None if the text has no documents."""
        return self.tokenizer.end if self.tokens[:1].tolist() == [self.tokenizer.end] else None

    def split(self, train_frac: float = 0.9, val_frac: float = 0.05) -> "Splits":
        """The tokens in three contiguous, disjoint splits; `test` is what the other two leave.

        Documents stay whole: the end token between two splits is the last of one and the first of the next. A separate
        validation text is all of `val`; `val_frac` is then ignored.
        """
        slices = self._slices(train_frac, val_frac)
        train, val, test = (self.tokens[slices[name]] for name in Splits._fields)
        return Splits(train, val if self.val is None else self.val.tokens, test)

    def _slices(self, train_frac: float, val_frac: float) -> dict[str, slice]:
        size, shared = len(self.tokens), 0
        val_frac = val_frac if self.val is None else 0.0
        borders = [int(size * train_frac), size]
        if train_frac + val_frac <= 1 - 1e-9:
            borders[1] = int(size * (train_frac + val_frac))
        if self.end is not None:
            ends, shared = find_ends(self.tokens, self.end), 1
            borders = [int(ends[np.abs(ends - border).argmin()]) for border in borders]
        train, val = borders
        splits = (slice(0, train + shared), slice(train, val + shared), slice(val, size))
        return {**dict(zip(Splits._fields, splits, strict=True)), "all": slice(0, size)}

    def extent(self, start: int = 0, stop: int | None = None) -> "Extent":
        """The amount of text in `tokens[start:stop]`.

        Raises:
            CorpusError: a token is unknown, and there is no `spelling`.
        """
        tokens, unknown = self.tokens[start:stop], self.tokenizer.unknown
        characters = count_characters(self.tokenizer, tokens)
        if unknown is None:
            return Extent(len(tokens), characters, 0.0)
        parts = (self.tokens[:start], tokens)
        before, here = (int(token_counts(part, self.tokenizer.vocab_size)[unknown]) for part in parts)
        if not here:
            return Extent(len(tokens), characters, 0.0)
        if self.spelling is None:
            raise CorpusError(f"{self.name}: expected the spelling of its unknown tokens; make it with load_corpus")
        spelled = self.spelling[before : before + here]
        characters += int(spelled["characters"].sum()) - here
        return Extent(len(tokens), characters, float(spelled["bits"].sum(dtype=np.float64)))

    def predicted(self, split: str = "all", train_frac: float = 0.9, val_frac: float = 0.05) -> "Extent":
        """The amount of text that a model predicts in a split, or in all: everything but the first token."""
        if split == "val" and self.val is not None:
            return self.val.predicted()
        part = self._slices(train_frac, val_frac)[split]
        return self.extent(min(part.start + 1, part.stop), part.stop)

    @property
    def characters(self) -> int:
        """Length of the text, with the full text of unknown tokens."""
        return self.extent().characters

    @cached_property
    def unknown_share(self) -> float:
        """Fraction of the tokens that are unknown."""
        if self.tokenizer.unknown is None:
            return 0.0
        counts = token_counts(self.tokens, self.tokenizer.vocab_size)
        return float(counts[self.tokenizer.unknown] / len(self.tokens))


class Extent(NamedTuple):
    """The size of the text that a span of tokens covers."""

    tokens: int
    characters: int  # with the full text of unknown tokens
    spelling: float  # bits to spell the unknown tokens

    def bpc(self, bits: float) -> float:
        """Bits per character of a model that takes `bits` per token, with the spelling of unknown tokens on top.

        This is the size of the losslessly compressed text, so it compares models with different tokens.
        """
        return (bits * self.tokens + self.spelling) / self.characters


class Splits(NamedTuple):
    """Tokens to train on, to select a model by, and to report a final result on."""

    train: Tokens
    val: Tokens
    test: Tokens


# ------------------------------------------------------------------------------------------------------ text -> tokens


def load_corpus(
    data: str | Path | DataConfig = "shakespeare",
    tokenizer: Tokenizer | str | None = None,
    data_dir: Path | None = None,
    **settings: Any,
) -> Corpus:
    """Tokenize a text, or take its tokens from the cache.

    Args:
        data: a name from `corpus_names()`, or the path of a text file, a folder of `.txt` files or a glob, any of them
            packed with gzip, bzip2 or xz, or `-` for standard input; or all settings at once.
        tokenizer: that of a trained model, or the kind to make from this text: `char`, `byte`, `word` or `bpe`.
        data_dir: folder of corpora and of the token cache; None is `default_data_dir()`.
        **settings: any other field of `DataConfig`: vocab_size, min_frequency, documents, separator, encoding,
            decode_errors, val_data. The vocabulary covers the validation text, too.

    Raises:
        ConfigError: a setting is unknown or out of range, or `tokenizer` has no end token for documents.
        CorpusError: the text does not exist, cannot be fetched or decoded, is empty, or has a character that
            `tokenizer` does not know.

    Warns:
        UserWarning: the text has more different characters than `vocab_size`; the rarest became U+FFFD.
    """
    if isinstance(tokenizer, str):
        tokenizer, settings = None, settings | {"tokenizer": tokenizer}
    config = data_config(data, **settings)
    if tokenizer is not None:
        config = config.model_copy(update={"tokenizer": tokenizer.kind})
    corpus = tokenize(open_sources(config, data_dir), config, tokenizer, data_dir)
    if tokenizer is None and config.min_frequency == 1 and config.tokenizer == "char" and corpus.unknown_share:
        warnings.warn(
            f"{config.name}: more than {config.vocab_size:,} different characters; the rarest became U+FFFD, "
            f"{corpus.unknown_share:.2%} of the text; raise --vocab-size to keep them, or take --tokenizer byte or bpe",
            stacklevel=2,
        )
    return corpus


def data_config(data: str | Path | DataConfig, **settings: Any) -> DataConfig:
    """The settings of a text: those of `data`, or the defaults for a text of that name, changed by `settings`.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    refuse_unknown(settings, DataConfig, "data setting")
    if not isinstance(data, DataConfig):
        return RunConfig().override({"data": absolute_name(data) if isinstance(data, Path) else data, **settings}).data
    return RunConfig(data=data).override(settings).data if settings else data


def open_sources(config: DataConfig, data_dir: Path | None = None) -> list[Source]:
    """The text and, if there is one, the separate validation text.

    Raises:
        CorpusError: there is no such text, or it cannot be fetched.
    """
    names = [config.name] if config.val_data is None else [config.name, config.val_data]
    return [open_source(config.model_copy(update={"name": name}), data_dir) for name in names]


def tokenize(
    sources: Sequence[Source], config: DataConfig, tokenizer: Tokenizer | None = None, data_dir: Path | None = None
) -> Corpus:
    """The corpus of `open_sources`, in the tokens of `tokenizer` or of a new one made from these texts.

    Raises:
        ConfigError, CorpusError: as for `load_corpus`.
    """
    if config.documents and tokenizer is not None and tokenizer.end is None:
        raise ConfigError(
            "data.documents (--documents): expected a model that was trained on documents, got one without an end token"
        )
    cache = _cache_folder(data_dir)
    remove_leftovers(cache.glob(".*"), STALE)
    tokenizer = tokenizer or make_tokenizer(sources, config, data_dir)
    corpus, *val = [_encode(source, tokenizer, cache) for source in sources]
    return replace(corpus, val=val[0]) if val else corpus


def make_tokenizer(sources: Sequence[Source], config: DataConfig, data_dir: Path | None = None) -> Tokenizer:
    """The tokenizer that the settings make from the texts, or that of the cache.

    Raises:
        CorpusError: a text cannot be read or decoded, or is empty.
    """
    hashes = " ".join(source.sha256 for source in sources)
    path = (
        _cache_folder(data_dir)
        / f"{_key(hashes, f'{config.tokenizer} {config.vocab_size} {config.min_frequency}')}.vocabulary"
    )
    if _is_whole(path):
        return tokenizer_from_json(path.read_bytes()[:-4].decode())
    kind = TOKENIZERS[config.tokenizer]
    texts = (
        text
        for source in sources
        for parts in source.parts("learning the tokens of", kind.whole_words)
        for text in parts
        if text
    )
    tokenizer: Tokenizer = kind.from_text(texts, config.vocab_size, config.min_frequency)
    if config.documents:
        tokenizer = DocumentTokenizer(tokenizer)
    write_if_possible(path, _with_checksum([tokenizer.to_json().encode()]))
    return tokenizer


def _encode(source: Source, tokenizer: Tokenizer, cache: Path) -> Corpus:
    """The tokens and the spelling of a text, from the cache or made and cached.

    Raises:
        CorpusError: the tokenizer does not know a character, or the text changes while it is read.
    """
    stem = cache / _key(source.sha256, tokenizer.to_json())
    about = {"text": absolute_name(source.name), "tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    arrays: dict[str, NDArray[Any]] = {}
    for name in ["tokens"] if tokenizer.unknown is None else ["tokens", "spelling"]:
        path, dtype = stem.with_suffix(f".{name}"), tokenizer.dtype if name == "tokens" else SPELLING
        blocks = _encoded_blocks(source, tokenizer, name)
        if _is_whole(path) or write_if_possible(path, _with_checksum(blocks)):
            arrays[name] = np.memmap(path, dtype, mode="r", shape=((path.stat().st_size - 4) // dtype.itemsize,))
        else:
            arrays[name] = np.frombuffer(b"".join(_encoded_blocks(source, tokenizer, name)), dtype)
        if name == "tokens" and not stem.with_suffix(".json").exists() and path.exists():
            write_if_possible(stem.with_suffix(".json"), [json.dumps(about).encode()])
    return Corpus(source.name, arrays["tokens"], tokenizer, source.sha256, arrays.get("spelling"))


def _encoded_blocks(source: Source, tokenizer: Tokenizer, name: str) -> Iterator[memoryview]:
    """The tokens or the spelling of a text, block by block."""
    encode: Callable[[str], NDArray[Any]] = tokenizer.encode if name == "tokens" else tokenizer.spelling
    end = [] if tokenizer.end is None else [np.array([tokenizer.end], tokenizer.dtype)]  # between documents
    digest, position = hashlib.sha256(), 0
    for parts in source.parts("encoding", tokenizer.whole_words):
        digest.update(source.encode(parts))
        blocks: list[NDArray[Any]] = []
        for text in parts:
            try:
                blocks += [*(end if blocks and name == "tokens" else []), encode(text)]
            except UnknownCharacterError as error:
                where = UnknownCharacterError(error.character, position + error.position, error.vocabulary)
                raise CorpusError(f"{source.name}: {where}") from error
            position += len(text)
        yield (np.concatenate(blocks) if len(blocks) > 1 else blocks[0]).data
    if digest.hexdigest() != source.sha256:
        raise CorpusError(f"{source.name}: the text changed while it was being read; try again")


# ----------------------------------------------------------------------------------------------------------- the cache


def _cache_folder(data_dir: Path | None) -> Path:
    return (data_dir or default_data_dir()) / ".cache"


def _key(sha256: str, made_by: str) -> str:
    return hashlib.sha256(f"{sha256} {made_by}".encode()).hexdigest()[:32]


def _with_checksum(blocks: Blocks) -> Iterator[bytes | memoryview]:
    checksum = 0
    for block in blocks:
        checksum = zlib.crc32(block, checksum)
        yield block
    yield checksum.to_bytes(4, "little")


def _is_whole(path: Path) -> bool:
    """Return whether a file of the cache exists and ends with its checksum."""
    checksum = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 17):
                checksum = zlib.crc32(block, checksum)
    except OSError:
        return False
    return checksum == 0x2144DF1C  # the CRC-32 of any data that is followed by its own CRC-32


class CachedText(NamedTuple):
    """Files of the token cache: the tokens that one tokenizer made of one text."""

    text: str  # a corpus name or a path; empty for a vocabulary
    tokenizer: str  # its kind
    vocab_size: int
    bytes: int  # on disk
    files: str  # as a glob


def cached_texts(data_dir: Path | None = None) -> list[CachedText]:
    """The content of the token cache, the largest first."""
    folder = _cache_folder(data_dir)
    sizes: dict[str, int] = {}
    for path in folder.glob("*"):
        sizes[path.stem] = sizes.get(path.stem, 0) + path.stat().st_size
    found = []
    for stem, size in sizes.items():
        text, kind, vocab_size = "", "", 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a vocabulary has no such file
            about = json.loads((folder / f"{stem}.json").read_bytes())
            text, kind, vocab_size = about["text"], about["tokenizer"], about["vocab_size"]
        found.append(CachedText(text, kind, vocab_size, size, str(folder / f"{stem}.*")))
    return sorted(found, key=lambda text: -text.bytes)


def clear_cache(data_dir: Path | None = None) -> int:
    """Remove the token cache; texts are tokenized again when they are next used.

    Returns:
        The size of the removed files in bytes.

    Raises:
        OSError: a file cannot be removed, as on Windows while a run uses it.
    """
    size = 0
    for path in _cache_folder(data_dir).glob("*"):
        size += path.stat().st_size
        path.unlink()
    return size
