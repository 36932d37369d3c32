"""Text to token ids and back.

A tokenizer is any object with the `Tokenizer` protocol below. `CharTokenizer` is the one of the 2015 char-rnn: one
token per character, where a character is a Unicode code point.
"""

import json
from typing import Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of different tokens V; ids run from 0 to V - 1."""

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Token ids of `text`, in the smallest unsigned integer type that holds V."""

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`; `decode(encode(text)) == text`."""

    def to_json(self) -> str:
        """All there is to know, for `tokenizer.json` in a checkpoint."""


class UnknownCharacterError(ValueError):
    """A character that is not in the vocabulary."""

    def __init__(self, text: str, position: int, vocabulary: str):
        self.character, self.position = text[position], position
        known = vocabulary if len(vocabulary) <= 100 else vocabulary[:100] + "…"
        super().__init__(
            f"expected only characters of the vocabulary, got {self.character!r} (U+{ord(self.character):04X}) "
            f"at position {position}; use one of these {len(vocabulary)}: {known!r}"
        )


class CharTokenizer:
    """One token per Unicode code point.

    Args:
        characters: the vocabulary; a character's id is its place in it.

    Raises:
        ValueError: the vocabulary is empty or names a character twice.
    """

    def __init__(self, characters: str):
        if not characters:
            raise ValueError("expected a vocabulary of at least one character, got an empty one")
        if len(set(characters)) != len(characters):
            twice = next(c for i, c in enumerate(characters) if c in characters[:i])
            raise ValueError(f"expected each character once in the vocabulary, got {twice!r} twice")
        self.characters = characters
        self._code_points = _code_points(characters)
        self._dtype = np.min_scalar_type(len(characters) - 1)
        # code point -> id, for all code points up to the largest known; len(characters) marks the unknown
        self._ids = np.full(int(self._code_points.max()) + 1, len(characters), dtype=np.uint32)
        self._ids[self._code_points] = np.arange(len(characters))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The characters of `text`, sorted by code point."""
        return cls("".join(map(chr, np.flatnonzero(np.bincount(_code_points(text))))))

    @property
    def vocab_size(self) -> int:
        """Number of characters."""
        return len(self.characters)

    def encode(self, text: str) -> NDArray[np.unsignedinteger]:
        """Ids `(len(text),)` of the characters of `text`.

        Raises:
            UnknownCharacterError: names the first character outside the vocabulary and its position.
        """
        code_points = _code_points(text)
        tokens = np.full(len(code_points), self.vocab_size, dtype=np.uint32)
        in_table = code_points < len(self._ids)
        tokens[in_table] = self._ids[code_points[in_table]]
        unknown = tokens == self.vocab_size
        if unknown.any():
            raise UnknownCharacterError(text, int(unknown.argmax()), self.characters)
        return tokens.astype(self._dtype)

    def decode(self, tokens: ArrayLike) -> str:
        """The text of `tokens`, any array or sequence of ids.

        Raises:
            IndexError: an id outside 0 … vocab_size - 1.
        """
        ids = np.asarray(tokens, dtype=np.int64).reshape(-1)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise IndexError(f"expected token ids from 0 to {self.vocab_size - 1}, got {ids.min()} to {ids.max()}")
        return self._code_points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def to_json(self) -> str:
        """`{"type": "char", "characters": "…"}`, in ASCII so that any Unicode survives any editor."""
        return json.dumps({"type": "char", "characters": self.characters})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"CharTokenizer({self.characters!r})"


_TYPES = {"char": CharTokenizer}


def tokenizer_from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote.

    Raises:
        ValueError: the text is no tokenizer of a known type.
    """
    try:
        fields = json.loads(text)
        return _TYPES[fields.pop("type")](**fields)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a tokenizer of type {' or '.join(_TYPES)} in JSON, got {text[:60]!r}") from error


def _code_points(text: str) -> NDArray[np.uint32]:
    """Unicode code points `(len(text),)`; lone surrogates pass, so that every Python string round-trips."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
