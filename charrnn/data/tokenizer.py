"""Text to token ids and back.

Four kinds of tokenizer, from fine to coarse:

    byte   one token per byte of UTF-8: 256 ids for any text
    char   one token per character (Unicode code point), as in the 2015 char-rnn
    bpe    frequent byte sequences, learned from the text (Sennrich et al., 2016, arXiv:1508.07909)
    word   one token per word, and one per character between words

Every token is some bytes of UTF-8, so all tokenizers decode in the same way, and a loss per token can be converted to
bits per character. An unknown token loses its text, so the cost of spelling it is added: the bits of a code that needs
only the vocabulary.
"""

import codecs
import copy
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import repeat
from types import ModuleType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn.errors import LoneSurrogateError, UnknownCharacterError
from charrnn.types import Tokens

UNKNOWN = "\ufffd"  # REPLACEMENT CHARACTER, the text of the token for everything rare

SPELLING = np.dtype([("characters", np.uint32), ("bits", np.float32)])  # of an unknown token's text

END_OF_DOCUMENT = "\udfff"  # between the documents of a text: half a character, so no text contains it


class Tokenizer(Protocol):
    """Converts between text and token ids. Two tokenizers with the same `to_json` are equal.

    Attributes:
        kind: `char`, `byte`, `word` or `bpe`.
        whole_words: a text in pieces must be cut between words.
        unknown: id of everything that is not in the vocabulary; None if there is none.
        end: id of the token that stands before, between and after documents; None if there is none.
        token_bytes: UTF-8 of each of the V tokens. A byte or bpe token may be part of a character; the end token is
            empty.
        errors: how `decode` treats invalid UTF-8. `replace` makes it U+FFFD, for people to read; `surrogateescape`
            makes it surrogates (PEP 383), which the byte tokenizer encodes as the same bytes.
    """

    kind: str
    whole_words: bool = True
    unknown: int | None = None
    end: int | None = None
    token_bytes: Sequence[bytes]
    errors: str = "replace"

    @property
    def vocab_size(self) -> int:
        """Number of different tokens V; ids run from 0 to V - 1."""
        return len(self.token_bytes)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that holds the ids."""
        return np.min_scalar_type(self.vocab_size - 1)

    def encode(self, text: str) -> Tokens:
        """Token ids of `text`, of type `dtype`."""
        ...

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`, an array or sequence of ids; `decode(encode(text)) == text` if nothing is unknown.

        Raises:
            IndexError: an id outside 0 … vocab_size - 1.
        """
        ids = _checked_ids(tokens, self.vocab_size)
        return b"".join(map(self.token_bytes.__getitem__, ids.tolist())).decode("utf-8", self.errors)

    def spelling(self, text: str) -> NDArray[np.void]:
        """The length of each unknown token's text in order, and the bits to spell it: `(n,)` of type `SPELLING`."""
        return np.empty(0, SPELLING)

    def to_json(self) -> str:
        """The whole tokenizer as ASCII, for `tokenizer.json` in a checkpoint: `{"type": kind, …}`."""
        ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens)"


def _checked_ids(tokens: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise IndexError(f"expected token ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}")
    return ids


def _refuse_repeated(tokens: Sequence[str], kind: str) -> None:
    if len(set(tokens)) != len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise ValueError(f"expected each {kind} once in the vocabulary, got {twice!r} twice")


def _pieces(text: str | Iterable[str]) -> Iterable[str]:
    return [text] if isinstance(text, str) else text


def _utf_8(text: str, errors: str = "strict") -> bytes:
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise LoneSurrogateError(text[error.start], error.start) from error


# ---------------------------------------------------------------------------------------------------------- characters


class CharTokenizer(Tokenizer):
    """One token per Unicode code point.

    Args:
        characters: the vocabulary, in the order of the ids.
        unknown: the character of the vocabulary that stands for all others; with None, others are an error.

    Raises:
        ValueError: the vocabulary is empty, has a character twice, or lacks `unknown`.
    """

    kind = "char"
    whole_words = False

    def __init__(self, characters: str, unknown: str | None = None):
        if not characters:
            raise ValueError("expected a vocabulary of at least one character, got an empty one")
        _refuse_repeated(characters, "character")
        if unknown is not None and unknown not in characters:
            raise ValueError(f"expected the unknown character to be in the vocabulary, got {unknown!r}")
        self.characters = characters
        self.unknown = None if unknown is None else characters.index(unknown)
        self.token_bytes = [character.encode("utf-8", "surrogatepass") for character in characters]
        self._code_points = _code_points(characters)
        # code point -> id, up to the largest known code point; without an unknown token, V marks unknown characters
        self._other = len(characters) if self.unknown is None else self.unknown
        self._ids = np.full(max(256, int(self._code_points.max()) + 1), self._other, dtype=np.uint32)
        self._ids[self._code_points] = np.arange(len(characters))
        self._latin_ids = self._ids[:256].astype(np.uint8).tobytes() if len(characters) < 256 else None

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = None, min_frequency: int = 1) -> Self:
        """The characters of `text`, sorted by code point. U+FFFD stands for the ones that are left out.

        Args:
            text: the text, or its pieces in order.
            vocab_size: keep at most that many tokens, the most frequent.
            min_frequency: leave out characters that occur less often.

        Raises:
            ValueError: there is no text.
        """
        counts = _count_code_points(_pieces(text))
        used = np.flatnonzero(counts)
        kept = used[counts[used] >= min_frequency]
        size = len(used) if vocab_size is None else vocab_size
        if len(kept) > size - (len(kept) < len(used)):  # U+FFFD takes a place
            kept = kept[np.argsort(-counts[kept], kind="stable")[: size - 1]]
        if len(kept) == len(used):
            return cls("".join(map(chr, kept)))
        return cls("".join(map(chr, sorted({*kept.tolist(), ord(UNKNOWN)}))), UNKNOWN)

    def encode(self, text: str) -> Tokens:
        """Ids `(len(text),)` of the characters of `text`.

        Raises:
            UnknownCharacterError: names the first character outside the vocabulary and its position.
        """
        if self._latin_ids is not None and (latin := _latin_1(text)) is not None:  # four times as fast
            tokens: Tokens = np.frombuffer(bytearray(latin.translate(self._latin_ids)), dtype=np.uint8)
        else:
            code_points = _code_points(text)
            tokens = self._ids[np.minimum(code_points, len(self._ids) - 1)]
            tokens[code_points >= len(self._ids)] = self._other
        if self._other == self.vocab_size and tokens.size and tokens.max() == self._other:
            position = int((tokens == self._other).argmax())
            raise UnknownCharacterError(text[position], position, self.characters)
        return tokens.astype(self.dtype, copy=False)

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`; faster than joining bytes, and exact for half a character."""
        ids = _checked_ids(tokens, self.vocab_size)
        return self._code_points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def spelling(self, text: str) -> NDArray[np.void]:
        """Each unknown character takes 8 bits for each of its bytes in UTF-8."""
        code_points = _code_points(text)[self.encode(text) == self.unknown]
        result = np.ones(len(code_points), SPELLING)
        result["bits"] = 8 * (1 + sum(code_points >= least for least in (0x80, 0x800, 0x10000)))
        return result

    def to_json(self) -> str:
        """`{"type": "char", "characters": "…"}`."""
        unknown = {} if self.unknown is None else {"unknown": self.characters[self.unknown]}
        return json.dumps({"type": self.kind, "characters": self.characters, **unknown})

    def __repr__(self) -> str:
        return f"CharTokenizer({self.characters!r})"


def _count_code_points(pieces: Iterable[str]) -> NDArray[np.int64]:
    """How often each code point occurs, `(n,)` with n above the largest."""
    counts = np.zeros(256, dtype=np.int64)
    for piece in pieces:
        if (latin := _latin_1(piece)) is not None:
            counts[:256] += np.bincount(np.frombuffer(latin, np.uint8), minlength=256)
        else:
            found = np.bincount(_code_points(piece), minlength=len(counts))
            counts = np.concatenate([counts, np.zeros(len(found) - len(counts), np.int64)]) + found
    return counts


def _latin_1(text: str) -> bytes | None:
    """One byte per character, if every code point fits into a byte."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _code_points(text: str) -> NDArray[np.uint32]:
    """Unicode code points `(len(text),)`; half a character passes, so that every Python string round-trips."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


# --------------------------------------------------------------------------------------------------------------- bytes


class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8, or of any file; nothing is ever unknown."""

    kind = "byte"
    whole_words = False
    token_bytes = tuple(bytes([value]) for value in range(256))

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = None, min_frequency: int = 1) -> Self:
        """The byte tokenizer; it learns nothing from the text."""
        return cls()

    def encode(self, text: str) -> Tokens:
        """The bytes of `text`; the surrogates U+DC80 to U+DCFF are the bytes 80 to FF of an invalid file.

        Raises:
            LoneSurrogateError: any other half a character, which has no UTF-8.
        """
        return np.frombuffer(bytearray(_utf_8(text, "surrogateescape")), dtype=np.uint8)

    def to_json(self) -> str:
        """`{"type": "byte"}`."""
        return json.dumps({"type": self.kind})


# --------------------------------------------------------------------------------------------------------------- words


class WordTokenizer(Tokenizer):
    r"""One token per word, a run of letters, digits and underscores, and one per character between words.

    Spaces and line ends are ordinary tokens, so text of known words is restored exactly.

    Args:
        words: the vocabulary; the first is U+FFFD, which stands for every unknown word.

    Raises:
        ValueError: a word occurs twice, or the first is not U+FFFD.
    """

    kind = "word"
    unknown = 0

    def __init__(self, words: Sequence[str]):
        if not words or words[0] != UNKNOWN:
            raise ValueError(f"expected {UNKNOWN!r} as the first word, got {words[0] if words else 'none'!r}")
        _refuse_repeated(words, "word")
        self.words = tuple(words)
        self._ids = {word: token for token, word in enumerate(words)}
        self.token_bytes = [_utf_8(word) for word in words]

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = None, min_frequency: int = 1) -> Self:
        """The words of `text`, the most frequent first.

        Args:
            text: the text, or its pieces in order, cut between words.
            vocab_size: keep at most that many tokens, U+FFFD included.
            min_frequency: leave out words that occur less often.
        """
        counts: Counter[str] = Counter()
        for piece in _pieces(text):
            counts.update(_WORD.findall(piece))
        del counts[UNKNOWN]
        frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, count in frequent if count >= min_frequency]
        return cls([UNKNOWN, *words[: None if vocab_size is None else vocab_size - 1]])

    def encode(self, text: str) -> Tokens:
        """Ids of the words of `text`; 0 for unknown words."""
        words = _WORD.findall(text)
        return np.fromiter(map(self._ids.get, words, repeat(0)), dtype=self.dtype, count=len(words))

    def spelling(self, text: str) -> NDArray[np.void]:
        """Each unknown word takes the bits of its characters and of an end mark.

        A character is as likely as in the vocabulary, each word counted once. A character outside the vocabulary takes
        the bits of an escape, as likely as if it had occurred once, and 8 for each of its bytes in UTF-8.
        """
        end, escape, bits = self._code
        words = [word for word in _WORD.findall(text) if not self._ids.get(word, 0)]
        costs = [
            end + sum(bits[letter] if letter in bits else escape + 8 * len(_utf_8(letter)) for letter in word)
            for word in words
        ]
        return np.array(list(zip(map(len, words), costs, strict=True)), SPELLING)

    @cached_property
    def _code(self) -> tuple[float, float, dict[str, float]]:
        """Bits of the end mark, of the escape and of each character of the vocabulary."""
        counts = Counter("".join(self.words[1:]))
        total = counts.total() + len(self.words) + 1  # the letters, the ends of all words, one escape
        bits = {letter: math.log2(total / count) for letter, count in counts.items()}
        return math.log2(total / len(self.words)), math.log2(total), bits

    def to_json(self) -> str:
        """`{"type": "word", "words": […]}`."""
        return json.dumps({"type": self.kind, "words": self.words})


_WORD = re.compile(r"\w+|\W")


# ---------------------------------------------------------------------------------------------------------- byte pairs


class BpeTokenizer(Tokenizer):
    """Byte-level byte-pair encoding, as in GPT-2: starts from bytes and merges the most frequent pair repeatedly.

    Args:
        spec: the parsed JSON of a tokenizer of the Hugging Face `tokenizers` library.

    Raises:
        ImportError: that library is not installed.
        ValueError: `spec` is no such tokenizer.
    """

    kind = "bpe"

    def __init__(self, spec: dict[str, Any]):
        library = _tokenizers()
        try:
            self._tokenizer = library.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"expected a tokenizer of the tokenizers library, got {spec!s:.60}: {error}") from error
        self.spec = spec
        letters = {letter: bytes([value]) for value, letter in enumerate(_byte_letters())}
        names = map(self._tokenizer.id_to_token, range(self._tokenizer.get_vocab_size()))
        self.token_bytes = [b"".join(map(letters.__getitem__, name)) for name in names]

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = 4096, min_frequency: int = 1) -> Self:
        """Learn the merges from `text`.

        Args:
            text: the text, or its pieces in order, cut between words.
            vocab_size: final number of tokens, at least the 256 bytes; fewer if the text has no more pairs.
            min_frequency: merge only pairs that occur at least so often.
        """
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=max(256, vocab_size or 4096),
            min_frequency=min_frequency,
            initial_alphabet=_byte_letters(),
            show_progress=os.isatty(2),
        )
        # a text without spaces is one word to the trainer, whose time is quadratic in the length of a word
        parts = (part for piece in _pieces(text) for part in cut_between_words([piece], 1 << 11))
        tokenizer.train_from_iterator(parts, trainer)
        return cls(json.loads(tokenizer.to_str()))

    def encode(self, text: str) -> Tokens:
        """Ids of `text`.

        Raises:
            LoneSurrogateError: half a character, which has no UTF-8.
        """
        parts = list(cut_between_words([text], 1 << 14))  # encoded in parallel
        try:
            encodings = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            _utf_8(text)  # raises the error that names the character
            raise
        ids = [np.asarray(encoding.ids, dtype=self.dtype) for encoding in encodings]
        return np.concatenate(ids) if ids else np.empty(0, self.dtype)

    def to_json(self) -> str:
        """`{"type": "bpe", "spec": {…}}`."""
        return json.dumps({"type": self.kind, "spec": self.spec})


def _tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "byte-pair encoding: expected the tokenizers library, got none; run: pip install tokenizers"
        ) from error
    module: ModuleType = tokenizers
    return module


def _byte_letters() -> list[str]:
    """The printable letter for each byte in a GPT-2 vocabulary: the byte itself if it is printable Latin-1."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value if value in printable else next(others)) for value in range(256)]


# ----------------------------------------------------------------------------------------------------------- documents


class DocumentTokenizer(Tokenizer):
    """A tokenizer of any kind with one more token, without text, that stands before, between and after documents.

    Args:
        base: tokenizes the text of a document.
        end: id of the end token, before which the ids of `base` stay as they are; None puts it last.

    Raises:
        ValueError: `end` is not an id of a vocabulary that is one larger than that of `base`.
    """

    def __init__(self, base: Tokenizer, end: int | None = None):
        end = base.vocab_size if end is None else end
        if not 0 <= end <= base.vocab_size:
            raise ValueError(f"expected an end token from 0 to {base.vocab_size}, got {end}")
        self.base, self.end = base, end
        self.kind, self.whole_words = base.kind, base.whole_words
        self.token_bytes = [*base.token_bytes[:end], b"", *base.token_bytes[end:]]
        self.unknown = None if base.unknown is None else base.unknown + (base.unknown >= end)

    def encode(self, text: str) -> Tokens:
        """Ids of `text`; the end token is not among them.

        Raises:
            UnknownCharacterError: a character outside the vocabulary of `base`.
        """
        tokens = self.base.encode(text).astype(self.dtype, copy=False)
        return tokens + (tokens >= self.end)

    def spelling(self, text: str) -> NDArray[np.void]:
        """The spelling of `base`."""
        return self.base.spelling(text)

    def to_json(self) -> str:
        """The JSON of `base` with `"end": id`."""
        return json.dumps({**json.loads(self.base.to_json()), "end": self.end})


# ------------------------------------------------------------------------------------------------------------ any kind

TOKENIZERS: dict[str, Any] = {kind.kind: kind for kind in (CharTokenizer, ByteTokenizer, WordTokenizer, BpeTokenizer)}


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote.

    Raises:
        ValueError: the text is not a tokenizer of a known type.
        ImportError: a library that it needs is not installed.
    """
    try:
        fields = json.loads(text)
        end = fields.pop("end", None)
        tokenizer: Tokenizer = TOKENIZERS[fields.pop("type")](**fields)
        return tokenizer if end is None else DocumentTokenizer(tokenizer, end)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a tokenizer of type {', '.join(TOKENIZERS)} in JSON, got {text[:60]!r}") from error


class StreamDecoder:
    """Decodes tokens one by one; the parts together are `tokenizer.decode` of all tokens.

    A byte or bpe token may end in the middle of a character. The token that completes the character brings it out.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.errors)

    def copy(self) -> "StreamDecoder":
        """Another decoder in the same state."""
        other = copy.copy(self)
        other._decoder = copy.copy(self._decoder)
        return other

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that are complete with these tokens; may be empty."""
        return self._decoder.decode(b"".join(map(self._token_bytes.__getitem__, tokens)))

    def flush(self) -> str:
        """The text of a last character that was never completed."""
        return self._decoder.decode(b"", final=True)


def count_characters(tokenizer: Tokenizer, tokens: Tokens, block: int = 1 << 20) -> int:
    """Number of characters in `tokens`.

    A character of several tokens counts at the first. An unknown token counts as one, and so does each byte of invalid
    UTF-8 in byte tokens.
    """
    if isinstance(tokenizer, ByteTokenizer):
        rest = next((i for i, byte in enumerate(tokens[:3]) if byte & 0xC0 != 0x80), 3)  # of a character before
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        blocks = (tokens[start : start + block] for start in range(rest, len(tokens), block))
        return sum(len(decoder.decode(part.tobytes())) for part in blocks) + bool(decoder.getstate()[0])
    # in UTF-8 each byte but 10xxxxxx starts a character
    lengths = np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in tokenizer.token_bytes])
    if (lengths == 1).all():
        return len(tokens)
    return sum(int(lengths[tokens[start : start + block]].sum()) for start in range(0, len(tokens), block))


def cut_between_words(pieces: Iterable[str], size: int = 1 << 17) -> Iterator[str]:
    """Pieces of at most `size` characters, each cut at the end of a document or between a letter or digit and a space.

    No word or byte pair reaches across such a cut, so the tokens of the pieces are those of the whole text. A piece
    without such a place is cut at `size` characters.
    """
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length >= size:
            text, start = "".join(parts), 0
            while len(text) - start >= size:
                cut = _CUT.match(text, start, start + size)
                end = cut.end() if cut else start + size
                yield text[start:end]
                start = end
            parts, length = [text[start:]], len(text) - start
    if length:
        yield "".join(parts)


_CUT = re.compile(rf"(?s:.+)(?:(?<=[^\W_])(?=\s)|(?={END_OF_DOCUMENT}))")  # as far as possible
