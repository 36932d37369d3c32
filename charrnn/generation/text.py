"""The text of one generation: decoding, stop strings, and its random numbers."""

from collections.abc import Iterable, Sequence

import numpy as np

from charrnn.data.tokenizer import StreamDecoder, Tokenizer
from charrnn.errors import ConfigError
from charrnn.generation.sampling_params import SEEDS
from charrnn.types import Floats


class _Text:
    """The characters that are generated, out of tokens of any size: exactly `length`, or up to a string or the end."""

    def __init__(self, tokenizer: Tokenizer, length: int | None, stops: Sequence[str], before: str):
        self._missing = length
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._tail = self._end_of(before)
        self.text_decoder = StreamDecoder(tokenizer)
        self._end = tokenizer.end
        self.ended = length == 0

    def push(self, tokens: Iterable[int]) -> str:
        """Take tokens; the characters they add, of which there may be none."""
        if self.ended:
            return ""
        tokens = list(tokens)
        at_end = self._end is not None and self._end in tokens
        piece = self.text_decoder.push(tokens[: tokens.index(self._end)] if at_end else tokens)
        piece = (piece + self.text_decoder.flush() if at_end else piece)[: self._missing]
        if self._stops:
            piece = self._up_to_a_stop(piece)
        self.ended |= at_end
        if self._missing is not None:
            self._missing -= len(piece)
            self.ended |= self._missing == 0
        return piece

    def _up_to_a_stop(self, piece: str) -> str:
        """The piece as far as the first stop string that ends in it."""
        known, text = len(self._tail), self._tail + piece
        found = ((text.find(stop, max(0, known - len(stop) + 1)), len(stop)) for stop in self._stops)
        ends = [place + size for place, size in found if place >= 0]
        if ends:
            self.ended = True
            return piece[: min(ends) - known]
        self._tail = self._end_of(text)
        return piece

    def _end_of(self, text: str) -> str:
        """As much of the end of `text` as may be the beginning of a stop string."""
        return text[max(0, len(text) - self._longest + 1) :] if self._stops else ""


class _Uniform:
    """Uniform numbers for B texts, each from a generator of its own.

    They are those of `torch.rand(…, dtype=torch.float64)` with a `torch.Generator` of the same seed: 53 bits out of 64,
    which are two numbers of the Mersenne Twister of Matsumoto & Nishimura (1998).
    """

    def __init__(self, size: int, seed: int | None):
        if seed is not None and seed + size > SEEDS:
            raise ConfigError(f"seed: expected at most {SEEDS - size} for {size} texts, got {seed}")
        first = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._generators = [np.random.MT19937(0) for _ in range(size)]
        for i, generator in enumerate(self._generators):
            np.random.RandomState(generator).seed((first + i) % SEEDS)

    def draw(self, size: int) -> Floats:
        """The next numbers of each text, `(size, B)`, float64."""
        pairs = np.stack([generator.random_raw(2 * size) for generator in self._generators], axis=-1)  # (2 * size, B)
        bits = (pairs[0::2] << np.uint64(32) | pairs[1::2]) & np.uint64(2**53 - 1)
        return bits * 2.0**-53
