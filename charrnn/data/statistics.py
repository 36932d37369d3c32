"""Statistics of a text: token counts, entropy, size."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from charrnn.data.tokenizer import Tokenizer
from charrnn.types import Tokens


def token_counts(tokens: Tokens, vocab_size: int, block: int = 1 << 20) -> NDArray[np.int64]:
    """The number of occurrences of each token, `(V,)`, in bounded memory."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), block):
        counts += np.bincount(tokens[start : start + block], minlength=vocab_size)
    return counts


def entropy(tokens: Tokens) -> float:
    """Entropy in bits of the token frequencies: the bits per token of a unigram model (Shannon, 1948).

    Raises:
        ValueError: there are no tokens.
    """
    if not len(tokens):
        raise ValueError("expected at least one token, got none")
    frequency = token_counts(tokens, int(tokens.max()) + 1) / len(tokens)
    frequency = frequency[frequency > 0]
    return 0.0 - float((frequency * np.log2(frequency)).sum())  # not the negative, which is -0.0 for a single token


def most_common(tokens: Tokens, tokenizer: Tokenizer, count: int = 10) -> list[tuple[str, int]]:
    """The `count` most frequent tokens as text, with their numbers of occurrences."""
    counts = token_counts(tokens, tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")[:count]
    return [(tokenizer.decode([token]), int(counts[token])) for token in order if counts[token]]


class TextShape(NamedTuple):
    """The size of a text in several units."""

    characters: int
    bytes: int  # in UTF-8
    words: int  # between spaces
    lines: int
    longest_line: int  # characters, without the newline


def describe_text(pieces: Iterable[str]) -> TextShape:
    """The size of a text that comes in pieces."""
    characters = size = words = lines = longest = line = 0
    in_word = False
    for piece in pieces:
        characters += len(piece)
        try:
            size += len(piece.encode("utf-8", "surrogateescape"))  # as a byte tokenizer reads files
        except UnicodeEncodeError:
            size += len(piece.encode("utf-8", "surrogatepass"))
        words += len(piece.split()) - (in_word and not piece[0].isspace())  # a word continues across the border
        in_word = not piece[-1].isspace()
        first, *others = piece.split("\n")
        line += len(first)
        if others:
            longest = max(longest, line, *map(len, others[:-1]))
            line = len(others[-1])
            lines += len(others)
    return TextShape(characters, size, words, lines + (line > 0), max(longest, line))
