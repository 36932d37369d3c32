"""Synthetic texts for controlled experiments: it is known exactly what a network must remember.

Each function yields a seeded text of exactly `length` characters in pieces, so that long texts take no more memory. It
raises pydantic.ValidationError for a number out of range.
"""

from collections.abc import Callable, Iterator
from string import ascii_letters
from typing import Annotated

import numpy as np
from pydantic import Field, validate_call

_LINES = 4096  # per piece

Length = Annotated[int, Field(ge=1)]

Seed = Annotated[int, Field(ge=0)]

Size = Annotated[int, Field(ge=1, le=10**4)]


@validate_call
def copy(
    length: Length = 1_000_000,
    seed: Seed = 0,
    delay: Annotated[int, Field(ge=0, le=10**4)] = 10,
    width: Size = 8,
    symbols: Annotated[int, Field(ge=1, le=52)] = 8,
) -> Iterator[str]:
    """Delayed copy: `width` random letters, `delay` dots, the same letters again (Hochreiter & Schmidhuber, 1997).

    Only the first `width` of the 2 width + delay + 1 characters of a line are new information: no model can do better
    than width log2(symbols) / (2 width + delay + 1) bits per character.

    Args:
        length: characters.
        seed: of the random letters.
        delay: dots between the letters and their copy, at least 0.
        width: letters to remember, at least 1.
        symbols: different letters, 1 to 52.
    """
    alphabet = np.frombuffer(ascii_letters[:symbols].encode(), np.uint8)
    rng = np.random.default_rng(seed)

    def lines() -> Iterator[bytes]:
        while True:
            letters = rng.choice(alphabet, (_LINES, width))
            dots = np.full((_LINES, delay), ord("."), np.uint8)
            ends = np.full((_LINES, 1), ord("\n"), np.uint8)
            yield np.hstack([letters, dots, letters, ends]).tobytes()

    return _take(lines(), length)


@validate_call
def counting(length: Length = 1_000_000, seed: Seed = 0, largest: Size = 20) -> Iterator[str]:
    """Lines of n times `a` and n times `b`, n from 1 to `largest` (Gers & Schmidhuber, 2001).

    Only n is new information: no model can do better than log2(largest) / (largest + 2) bits per character.

    Args:
        length: characters.
        seed: of the random numbers.
        largest: the largest n, at least 1.
    """
    rng = np.random.default_rng(seed)
    line = np.tile(np.frombuffer(b"ab\n", np.uint8), _LINES)

    def lines() -> Iterator[bytes]:
        while True:
            n = rng.integers(1, largest, _LINES, endpoint=True)
            yield np.repeat(line, np.stack([n, n, np.ones_like(n)], axis=1).ravel()).tobytes()

    return _take(lines(), length)


@validate_call
def brackets(
    length: Length = 1_000_000,
    seed: Seed = 0,
    depth: Annotated[int, Field(ge=1, le=100)] = 4,
    kinds: Annotated[int, Field(ge=1, le=4)] = 3,
) -> Iterator[str]:
    """Nested brackets, closed in order and at most `depth` deep: the next character depends on the open brackets.

    Args:
        length: characters.
        seed: of the random choices.
        depth: brackets open at once, at least 1.
        kinds: different pairs, 1 to 4.
    """
    rng = np.random.default_rng(seed)

    def lines() -> Iterator[bytes]:
        while True:
            yield _bracket_lines(rng, depth, kinds)

    return _take(lines(), length)


def _bracket_lines(rng: np.random.Generator, depth: int, kinds: int, lanes: int = 256, steps: int = 512) -> bytes:
    """Lines of brackets: `lanes` texts grow side by side for `steps` characters, then all open brackets are closed."""
    opening, closing = (np.frombuffer(text, np.uint8) for text in (b"([{<", b")]}>"))
    lane = np.arange(lanes)
    stack = np.zeros((lanes, depth), np.int64)  # kinds of the open brackets
    level = np.zeros(lanes, np.int64)  # number of open brackets
    text = np.zeros((lanes, steps + depth + 1), np.uint8)
    for step in range(text.shape[1]):
        kind, choice = rng.integers(kinds, size=lanes), rng.random(lanes)
        at_start = text[:, step - 1] == ord("\n") if step else np.full(lanes, True)
        likely = np.where(level, 0.5, np.where(at_start, 1.0, 0.75))  # no line is empty
        opens = (level < depth) & (choice < likely) & (step < steps)
        closes = ~opens & (level > 0)
        text[:, step] = np.where(opens, opening[kind], np.where(closes, closing[stack[lane, level - 1]], ord("\n")))
        stack[lane[opens], level[opens]] = kind[opens]
        level += opens.astype(np.int64) - closes
    return b"".join(row.tobytes().rstrip(b"\n") + b"\n" for row in text)


def _take(blocks: Iterator[bytes], length: int) -> Iterator[str]:
    for block in blocks:
        piece = block[:length].decode("ascii")
        yield piece
        length -= len(piece)
        if not length:
            return


SYNTHETIC: dict[str, Callable[..., Iterator[str]]] = {make.__name__: make for make in (copy, counting, brackets)}
