"""The text of one generation: decoding, stop strings, random numbers, and a stream that can be continued."""

import copy
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from charrnn.config import LONGEST_STOP
from charrnn.data.tokenizer import StreamDecoder, Tokenizer
from charrnn.errors import ConfigError
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import SEEDS, SamplingParams, takes_sampling_params
from charrnn.types import Floats, Tokens

if TYPE_CHECKING:  # PyTorch takes seconds to load
    from charrnn.generation.decoder import Decoder, ResumableDecoder

CHUNK = 1024  # tokens of a prompt that are read between two of its pieces

LARGEST_BLOCK, LONGEST_BLOCK = 64, 0.01  # tokens, and about as many seconds, between two pieces of a streamed text


class GeneratedText:
    """Turns tokens into characters: exactly `length`, or up to a stop string or the end token."""

    def __init__(self, tokenizer: Tokenizer, length: int | None, stops: Sequence[str], before: str):
        self._missing = length
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._tail = self._end_of(before)
        self.text_decoder = StreamDecoder(tokenizer)
        self._end = tokenizer.end
        self.ended = length == 0

    def push(self, tokens: Iterable[int]) -> str:
        """Add tokens; return the characters that they complete, which may be none."""
        if self.ended:
            return ""
        before_end = list(itertools.takewhile(lambda token: token != self._end, tokens := list(tokens)))
        at_end = len(before_end) < len(tokens)
        piece = self.text_decoder.push(before_end)
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
        """The end of `text` that may be the beginning of a stop string."""
        return text[max(0, len(text) - self._longest + 1) :] if self._stops else ""


class UniformNumbers:
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


def draw_blocks(
    decoder: "Decoder", pipeline: LogitsPipeline, uniform: UniformNumbers, sizes: Iterable[int]
) -> Iterator[Tokens]:
    """Draw blocks `(N, B)` of tokens, of these sizes N, from a decoder that has read the prompts."""
    step = 0
    for size in sizes:
        yield decoder.decode_n(uniform.draw(size), pipeline, step)
        step += size


def _growing() -> Iterator[int]:
    """Block sizes that double while the blocks come quickly."""
    size, asked = 1, time.perf_counter()
    while True:
        yield size
        now = time.perf_counter()
        if now - asked < LONGEST_BLOCK / 2 and size < LARGEST_BLOCK:
            size *= 2
        asked = now


class TextStream(Iterator[str]):
    """The text of `TextGenerator.stream`, piece by piece; `go_on` continues it from its present place."""

    _pieces: Iterator[str]

    def __init__(self, tokenizer: Tokenizer, decoder: "ResumableDecoder", params: SamplingParams, tokens: Tokens):
        prompt, count = params.prompt, math.ceil(len(tokens) / CHUNK)
        borders = [len(prompt) * i // count for i in range(count + 1)]
        self._unread = [
            (prompt[start:end], tokens[i * CHUNK : (i + 1) * CHUNK])
            for i, (start, end) in enumerate(itertools.pairwise(borders))
        ]
        self._tokenizer, self._decoder = tokenizer, decoder
        # the present place: the model's state, the tokens after it that were shown, half a character after these
        self._state, self._shown, self._text_decoder = decoder.snapshot(), tokens[:0], StreamDecoder(tokenizer)
        self._tail = ""  # the end of the text, in which a stop string may begin
        self._begin(params)

    def __next__(self) -> str:
        return next(self._pieces)

    @takes_sampling_params
    def go_on(self, length: int | None = 1000, **settings: Any) -> "TextStream":
        """Continue after the last piece yielded, without rereading the text. This stream ends.

        If it stopped within its prompt, the rest of that comes first.

        Args:
            length: as for `TextGenerator.stream`, counted from here.
            **settings: likewise. Settings of this stream do not carry over; give another seed.
        """
        other = copy.copy(self)
        other._begin(SamplingParams(prompt="", length=length, **settings))
        self._pieces = iter([])
        return other

    def _begin(self, params: SamplingParams) -> None:
        # wrong settings raise here and now, not when the first piece is asked for
        pipeline, uniform = LogitsPipeline(self._tokenizer, params), UniformNumbers(1, params.seed)
        self._pieces = self._write(params, pipeline, uniform)

    def _write(self, params: SamplingParams, pipeline: LogitsPipeline, uniform: UniformNumbers) -> Iterator[str]:
        self._read()
        while self._unread:
            (piece, self._shown), self._unread = self._unread[0], self._unread[1:]
            if piece:
                yield self._noted(piece)
            self._read()
        text = GeneratedText(self._tokenizer, params.length, params.stop, self._tail)
        blocks = draw_blocks(self._decoder, pipeline, uniform, _growing())
        while not text.ended:
            tokens = next(blocks)[:, 0]
            text.text_decoder = self._text_decoder.copy()
            piece = text.push(tokens.tolist())
            if text.ended:
                self._shown, self._text_decoder = self._spelling(tokens, piece)
            else:
                self._state, self._text_decoder = self._decoder.snapshot(), text.text_decoder
            if piece:
                yield self._noted(piece)

    def _read(self) -> None:
        """Read the tokens that were shown but not read, from the last known state: an interrupt may have changed it."""
        self._decoder.restore(self._state)
        if len(self._shown):
            self._decoder.extend(self._shown)
            self._state, self._shown = self._decoder.snapshot(), self._shown[:0]

    def _noted(self, piece: str) -> str:
        self._tail = (self._tail + piece)[-LONGEST_STOP:]
        return piece

    def _spelling(self, tokens: Tokens, piece: str) -> tuple[Tokens, StreamDecoder]:
        """The first of these tokens, which spell `piece`, and the decoder after them; the piece may end within one."""
        decoder, missing = self._text_decoder.copy(), piece
        for i, token in enumerate(tokens.tolist()):
            if not missing or token == self._tokenizer.end:
                return tokens[:i], decoder
            characters = decoder.push([token])
            if len(characters) > len(missing):
                spelled = self._tokenizer.encode(missing).astype(np.int64)
                return np.concatenate([tokens[:i], spelled]), StreamDecoder(self._tokenizer)
            missing = missing[len(characters) :]
        return tokens, decoder
