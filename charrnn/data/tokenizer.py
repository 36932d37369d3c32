"""Text to token ids and back.

A tokenizer is any object with the `Tokenizer` protocol below. Four kinds, from fine to coarse:

    byte   one token per byte of UTF-8: 256 ids that can say anything
    char   one token per character (Unicode code point), as in the 2015 char-rnn
    bpe    frequent runs of bytes, learned from the text (Sennrich et al., 2016, arXiv:1508.07909)
    word   one token per word, and one per character between words

A token of any kind is a few bytes of UTF-8, so all of them decode alike, and a loss per token becomes bits per
character. An unknown token does not say what it stands for, so its spelling is charged on top: the bits of a code that
needs nothing but the vocabulary.
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
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn.errors import LoneSurrogateError, UnknownCharacterError

UNKNOWN = "\ufffd"  # REPLACEMENT CHARACTER: what a token for everything rare looks like

SPELLING = np.dtype([("characters", np.uint32), ("bits", np.float32)])  # of what an unknown token stands for

END_OF_DOCUMENT = "\udfff"  # stands between the documents of a text; no text has it, for it is half a character


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer. Two with the same `to_json` are equal."""

    kind: ClassVar[str]
    whole_words: ClassVar[bool]  # a text may only be cut between words before it is encoded

    @property
    def vocab_size(self) -> int:
        """Number of different tokens V; ids run from 0 to V - 1."""

    @property
    def unknown(self) -> int | None:
        """The id that stands for whatever is not in the vocabulary; None where there is no such id."""

    @property
    def end(self) -> int | None:
        """The id that stands before, between and after documents; None where there is no such id."""

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """UTF-8 of each of the V tokens; a byte or bpe token may be a part of a character, the end token has none."""

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Token ids of `text`, in the smallest unsigned integer type that holds V."""

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`; `decode(encode(text)) == text` where nothing is unknown."""

    def spelling(self, text: str) -> NDArray[np.void]:
        """For each unknown token of `text`, in order, how many characters it stands for and the bits to spell them.

        `(n,)` of type `SPELLING`. Asked only where there is an `unknown`.
        """

    def to_json(self) -> str:
        """All there is to know, for `tokenizer.json` in a checkpoint."""


class _ByteDecoding:
    """What byte, bpe and word have in common: text is the bytes of the tokens, one after the other.

    Attributes:
        errors: what becomes of bytes that are no UTF-8. `replace` makes them U+FFFD, for people to read;
            `surrogateescape` makes them surrogates (PEP 383), which a byte tokenizer encodes as the same bytes.
    """

    errors = "replace"
    kind: ClassVar[str]
    whole_words: ClassVar[bool] = True
    end: int | None = None
    token_bytes: Sequence[bytes]

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.token_bytes)

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`, any array or sequence of ids.

        Raises:
            IndexError: an id outside 0 … vocab_size - 1.
        """
        ids = _checked_ids(tokens, self.vocab_size)
        return b"".join(map(self.token_bytes.__getitem__, ids.tolist())).decode("utf-8", self.errors)

    def spelling(self, text: str) -> NDArray[np.void]:
        """Nothing is unknown to bytes and byte pairs."""
        return np.empty(0, SPELLING)

    def to_json(self) -> str:
        """`{"type": kind, …}`, in ASCII so that any Unicode survives any editor."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens)"


# -------------------------------------------------------------------------------------------------------- characters


class CharTokenizer:
    """One token per Unicode code point.

    Args:
        characters: the vocabulary; a character's id is its place in it.
        unknown: the character of the vocabulary that stands for all others; None makes others an error.

    Raises:
        ValueError: the vocabulary is empty, names a character twice, or lacks `unknown`.
    """

    kind = "char"
    whole_words = False
    end = None

    def __init__(self, characters: str, unknown: str | None = None):
        if not characters:
            raise ValueError("expected a vocabulary of at least one character, got an empty one")
        if len(set(characters)) != len(characters):
            twice = next(c for i, c in enumerate(characters) if c in characters[:i])
            raise ValueError(f"expected each character once in the vocabulary, got {twice!r} twice")
        if unknown is not None and unknown not in characters:
            raise ValueError(f"expected the unknown character to be in the vocabulary, got {unknown!r}")
        self.characters = characters
        self.unknown = None if unknown is None else characters.index(unknown)
        self._code_points = _code_points(characters)
        self._dtype = np.min_scalar_type(len(characters) - 1)
        # code point -> id, for all code points up to the largest known; len(characters) marks the unknown
        other = len(characters) if self.unknown is None else self.unknown
        self._ids = np.full(max(256, int(self._code_points.max()) + 1), other, dtype=np.uint32)
        self._ids[self._code_points] = np.arange(len(characters))
        self._other = other
        self._bytes = self._ids[:256].astype(np.uint8).tobytes() if len(characters) < 256 else None

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = None, min_frequency: int = 1) -> Self:
        """The characters of `text`, sorted by code point.

        Args:
            text: the text, or its pieces in order.
            vocab_size: keep at most that many tokens, the commonest.
            min_frequency: drop the characters that occur less often. Where any is dropped, U+FFFD stands for them all.

        Raises:
            ValueError: there is no text.
        """
        counts = _count_code_points([text] if isinstance(text, str) else text)
        used = np.flatnonzero(counts)
        kept = used[counts[used] >= min_frequency]
        room = len(used) if vocab_size is None else vocab_size - (len(kept) < len(used))  # U+FFFD takes a place
        if len(kept) > room:
            kept = kept[np.argsort(-counts[kept], kind="stable")[: vocab_size - 1]]
        if len(kept) == len(used):
            return cls("".join(map(chr, kept)))
        return cls("".join(map(chr, sorted({*kept.tolist(), ord(UNKNOWN)}))), UNKNOWN)

    @property
    def vocab_size(self) -> int:
        """Number of characters."""
        return len(self.characters)

    @property
    def token_bytes(self) -> list[bytes]:
        """UTF-8 of each character."""
        return [character.encode("utf-8", "surrogatepass") for character in self.characters]

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids `(len(text),)` of the characters of `text`.

        Raises:
            UnknownCharacterError: names the first character outside the vocabulary and its position, where no
                character stands for such.
        """
        if self._bytes is not None and (latin := _latin_1(text)) is not None:
            tokens = np.frombuffer(bytearray(latin.translate(self._bytes)), dtype=np.uint8)  # four times as fast
        else:
            code_points = _code_points(text)
            tokens = self._ids[np.minimum(code_points, len(self._ids) - 1)]
            tokens[code_points >= len(self._ids)] = self._other
        if self._other == self.vocab_size and tokens.size and tokens.max() == self._other:
            position = int((tokens == self._other).argmax())
            raise UnknownCharacterError(text[position], position, self.characters)
        return tokens.astype(self._dtype, copy=False)

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`, any array or sequence of ids.

        Raises:
            IndexError: an id outside 0 … vocab_size - 1.
        """
        ids = _checked_ids(tokens, self.vocab_size)
        return self._code_points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def spelling(self, text: str) -> NDArray[np.void]:
        """Each unknown character takes 8 bits for each of its bytes in UTF-8."""
        code_points = _code_points(text)[self.encode(text) == self.unknown]
        result = np.ones(len(code_points), SPELLING)
        result["bits"] = 8 * (1 + sum(code_points >= least for least in (0x80, 0x800, 0x10000)))
        return result

    def to_json(self) -> str:
        """`{"type": "char", "characters": "…"}`, in ASCII so that any Unicode survives any editor."""
        unknown = {} if self.unknown is None else {"unknown": self.characters[self.unknown]}
        return json.dumps({"type": self.kind, "characters": self.characters, **unknown})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"CharTokenizer({self.characters!r})"


def _count_code_points(pieces: Iterable[str]) -> NDArray[np.int64]:
    """How often each code point occurs, `(n,)`, n larger than the largest."""
    counts = np.zeros(256, dtype=np.int64)
    for piece in pieces:
        if (latin := _latin_1(piece)) is not None:
            counts[:256] += np.bincount(np.frombuffer(latin, np.uint8), minlength=256)
        else:
            found = np.bincount(_code_points(piece), minlength=len(counts))
            counts = np.concatenate([counts, np.zeros(len(found) - len(counts), np.int64)]) + found
    return counts


def _latin_1(text: str) -> bytes | None:
    """One byte per character, if every character's code point fits into one."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _code_points(text: str) -> NDArray[np.uint32]:
    """Unicode code points `(len(text),)`; lone surrogates pass, so that every Python string round-trips."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _checked_ids(tokens: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise IndexError(f"expected token ids from 0 to {vocab_size - 1}, got {ids.min()} to {ids.max()}")
    return ids


# ------------------------------------------------------------------------------------------------------------- bytes


class ByteTokenizer(_ByteDecoding):
    """One token per byte of UTF-8, or of any file; nothing is ever out of vocabulary."""

    kind = "byte"
    whole_words = False
    unknown = None
    token_bytes = tuple(bytes([value]) for value in range(256))

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = None, min_frequency: int = 1) -> Self:
        """The one there is; nothing is learned from the text."""
        return cls()

    def encode(self, text: str) -> NDArray[np.uint8]:
        """The bytes of `text`; U+DC80 to U+DCFF are the bytes 80 to FF, as where a file is no UTF-8.

        Raises:
            LoneSurrogateError: half a character otherwise, which has no UTF-8.
        """
        return np.frombuffer(bytearray(_utf_8(text, "surrogateescape")), dtype=np.uint8)

    def to_json(self) -> str:
        """`{"type": "byte"}`."""
        return json.dumps({"type": self.kind})


def _utf_8(text: str, errors: str = "strict") -> bytes:
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise LoneSurrogateError(text[error.start], error.start) from error


# ------------------------------------------------------------------------------------------------------------- words


class WordTokenizer(_ByteDecoding):
    r"""One token per word, a run of letters, digits and underscores, and one for every character between words.

    So spaces and line ends are tokens like all others, and known words come back exactly as they were.

    Args:
        words: the vocabulary; the first is U+FFFD, which stands for every unknown word.

    Raises:
        ValueError: a word is named twice, or the first is another.
    """

    kind = "word"
    unknown = 0

    def __init__(self, words: Sequence[str]):
        if not words or words[0] != UNKNOWN:
            raise ValueError(f"expected {UNKNOWN!r} as the first word, got {words[0] if words else 'none'!r}")
        self.words = tuple(words)
        self._ids = {word: token for token, word in enumerate(words)}
        if len(self._ids) != len(words):
            twice = next(word for word, count in Counter(words).items() if count > 1)
            raise ValueError(f"expected each word once in the vocabulary, got {twice!r} twice")
        self.token_bytes = [_utf_8(word) for word in words]
        self._dtype = np.min_scalar_type(len(words) - 1)

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = None, min_frequency: int = 1) -> Self:
        """The words of `text`, the commonest first.

        Args:
            text: the text, or its pieces in order, cut between words.
            vocab_size: keep at most that many tokens, the unknown one among them.
            min_frequency: drop the words that occur less often.
        """
        counts: Counter[str] = Counter()
        for piece in [text] if isinstance(text, str) else text:
            counts.update(_WORD.findall(piece))
        del counts[UNKNOWN]
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        words = [word for word, count in common if count >= min_frequency]
        return cls([UNKNOWN, *words[: None if vocab_size is None else vocab_size - 1]])

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids of the words of `text`; 0 for those that are not in the vocabulary."""
        words = _WORD.findall(text)
        return np.fromiter(map(self._ids.get, words, repeat(0)), dtype=self._dtype, count=len(words))

    def spelling(self, text: str) -> NDArray[np.void]:
        """Each unknown word takes the bits of its characters and of a mark at its end.

        A character is as likely as it is in the vocabulary, each word taken once. One that stands nowhere in it takes
        the bits of an escape, as likely as if it had been seen once, and 8 for each of its bytes in UTF-8.
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


# --------------------------------------------------------------------------------------------------------- byte pairs


class BpeTokenizer(_ByteDecoding):
    """Byte-level byte-pair encoding, as in GPT-2: starts from bytes and joins the commonest pair again and again.

    Args:
        spec: the tokenizer as the Hugging Face `tokenizers` library writes it to JSON, parsed.

    Raises:
        ImportError: that library is not installed.
        ValueError: `spec` is no such tokenizer.
    """

    kind = "bpe"
    unknown = None

    def __init__(self, spec: dict[str, Any]):
        try:
            self._tokenizer = _tokenizers().Tokenizer.from_str(json.dumps(spec))
        except ImportError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"expected a tokenizer of the tokenizers library, got {spec!s:.60}: {error}") from error
        self.spec = spec
        letters = {letter: bytes([value]) for value, letter in enumerate(_byte_letters())}
        names = map(self._tokenizer.id_to_token, range(self._tokenizer.get_vocab_size()))
        self.token_bytes = [b"".join(map(letters.__getitem__, name)) for name in names]
        self._dtype = np.min_scalar_type(len(self.token_bytes) - 1)

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int | None = 4096, min_frequency: int = 1) -> Self:
        """Learn the joins from `text`.

        Args:
            text: the text, or its pieces in order, cut between words.
            vocab_size: tokens to end with, at least the 256 bytes; fewer where the text offers no more pairs.
            min_frequency: join only pairs that occur so often.
        """
        hf = _tokenizers()
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = hf.trainers.BpeTrainer(
            vocab_size=max(256, vocab_size or 4096),
            min_frequency=min_frequency,
            initial_alphabet=_byte_letters(),
            show_progress=os.isatty(2),
        )
        pieces = [text] if isinstance(text, str) else text
        # the trainer takes quadratic time over a text without spaces, which it sees as one word
        parts = (part for piece in pieces for part in cut_between_words([piece], 1 << 11))
        tokenizer.train_from_iterator(parts, trainer)
        return cls(json.loads(tokenizer.to_str()))

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids of `text`.

        Raises:
            LoneSurrogateError: half a character, which has no UTF-8.
        """
        parts = list(cut_between_words([text], 1 << 14))  # encoded side by side
        try:
            encodings = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            _utf_8(text)  # says which character it is
            raise
        ids = [np.asarray(encoding.ids, dtype=self._dtype) for encoding in encodings]
        return np.concatenate(ids) if ids else np.empty(0, self._dtype)

    def to_json(self) -> str:
        """`{"type": "bpe", "spec": {…}}`."""
        return json.dumps({"type": self.kind, "spec": self.spec})


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "byte-pair encoding: expected the tokenizers library, got none; run: pip install tokenizers"
        ) from error
    return tokenizers


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in a GPT-2 vocabulary: itself if it is printable Latin-1."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(value if value in printable else next(others)) for value in range(256)]


# --------------------------------------------------------------------------------------------------------- documents


class DocumentTokenizer(_ByteDecoding):
    """A tokenizer of any kind with one more token, which has no text: it stands before, between and after documents.

    Args:
        base: turns the text of a document into tokens.
        end: id of the end token; the ids of `base` from there on go up by one. None puts it after them all.

    Raises:
        ValueError: `end` is no id of a vocabulary that is one larger than that of `base`.
    """

    def __init__(self, base: Tokenizer, end: int | None = None):
        self.end = base.vocab_size if end is None else end
        if not 0 <= self.end <= base.vocab_size:
            raise ValueError(f"expected an end token from 0 to {base.vocab_size}, got {end}")
        self.base = base
        self.kind, self.whole_words = base.kind, base.whole_words
        self.token_bytes = [*base.token_bytes[: self.end], b"", *base.token_bytes[self.end :]]
        self.unknown = None if base.unknown is None else base.unknown + (base.unknown >= self.end)
        self._dtype = np.min_scalar_type(base.vocab_size)

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids of `text`, as `base` has them; the end token is not among them.

        Raises:
            UnknownCharacterError: a character outside the vocabulary of `base`.
        """
        tokens = self.base.encode(text).astype(self._dtype, copy=False)
        return tokens + (tokens >= self.end)

    def spelling(self, text: str) -> NDArray[np.void]:
        """What `base` says of its unknown tokens."""
        return self.base.spelling(text)

    def to_json(self) -> str:
        """That of `base` with `"end": id`."""
        return json.dumps({**json.loads(self.base.to_json()), "end": self.end})


# ------------------------------------------------------------------------------------------------- one of the kinds

TOKENIZERS: dict[str, type[Any]] = {
    kind.kind: kind for kind in (CharTokenizer, ByteTokenizer, WordTokenizer, BpeTokenizer)
}


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote.

    Raises:
        ValueError: the text is no tokenizer of a known type.
        ImportError: it needs a library that is not installed.
    """
    try:
        fields = json.loads(text)
        end = fields.pop("end", None)
        tokenizer = TOKENIZERS[fields.pop("type")](**fields)
        return tokenizer if end is None else DocumentTokenizer(tokenizer, end)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a tokenizer of type {', '.join(TOKENIZERS)} in JSON, got {text[:60]!r}") from error


class StreamDecoder:
    """The text of tokens that come one by one; together it is `tokenizer.decode` of them all.

    A byte or bpe token may end in the middle of a character, which comes out with the token that completes it. Bytes
    that are no UTF-8 come out as the tokenizer's `errors` has it, U+FFFD by default.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(getattr(tokenizer, "errors", "replace"))

    def copy(self) -> "StreamDecoder":
        """Another decoder in the same state."""
        other = copy.copy(self)
        other._decoder = copy.copy(self._decoder)
        return other

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that are complete with these tokens; may be empty."""
        return self._decoder.decode(b"".join(map(self._token_bytes.__getitem__, tokens)))

    def flush(self) -> str:
        """What is left at the end of a character that was never completed."""
        return self._decoder.decode(b"", final=True)


def count_characters(tokenizer: Tokenizer, tokens: NDArray[np.unsignedinteger], block: int = 1 << 20) -> int:
    """Characters in `tokens`; one that is spread over several tokens belongs to the first, an unknown token is one.

    To a byte tokenizer each byte that is no UTF-8 is one as well.
    """
    if isinstance(tokenizer, ByteTokenizer):
        rest = next((i for i, byte in enumerate(tokens[:3]) if byte & 0xC0 != 0x80), 3)  # of what began before
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        blocks = (tokens[start : start + block] for start in range(rest, len(tokens), block))
        return sum(len(decoder.decode(part.tobytes())) for part in blocks) + bool(decoder.getstate()[0])
    # in UTF-8 each byte but 10xxxxxx starts a character
    lengths = np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in tokenizer.token_bytes])
    if (lengths == 1).all():
        return len(tokens)
    return sum(int(lengths[tokens[start : start + block]].sum()) for start in range(0, len(tokens), block))


def cut_between_words(pieces: Iterable[str], size: int = 1 << 17) -> Iterator[str]:
    """The same text in pieces of at most `size` characters, each cut before a space that follows a letter or digit.

    The end of a document will do as well. Words and byte pairs never reach across such a cut, so encoding the pieces
    equals encoding the whole. Where `size` characters offer none, they are cut where they stand.
    """
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length >= size:
            text = "".join(parts)
            start = 0
            while len(text) - start >= size:
                end = _last_cut(text, start, start + size)
                yield text[start:end]
                start = end
            parts, length = [text[start:]], len(text) - start
    if length:
        yield "".join(parts)


_CUT = re.compile(rf"(?<=[^\W_])\s|{END_OF_DOCUMENT}")


def _last_cut(text: str, start: int, end: int) -> int:
    """The last place in (start, end) before a space that follows a letter or digit; `end` if there is none."""
    for reach in (1 << 10, end - start):  # mostly near
        cuts = [match.start() for match in _CUT.finditer(text, max(start + 1, end - reach), end)]
        if cuts:
            return cuts[-1]
    return end
