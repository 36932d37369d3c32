"""The pipeline of logits processors that the settings of a text ask for, and the draw after it."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from charrnn.data.tokenizer import UNKNOWN, Tokenizer
from charrnn.generation import logits as processors
from charrnn.generation.logits import LogitsProcessor, Truncation, checked, sample
from charrnn.generation.sampling_params import SamplingParams
from charrnn.types import Floats, Tokens

RECENT = 32  # tokens that the repetition penalty remembers

LARGEST_UNSORTED = 1024  # vocabulary size; compiled code finds the likeliest tokens one by one


class LogitsPipeline:
    """The logits processors of each step, in their order.

    The order is: allow and forbid, repetition penalty, temperature, top_k, top_p, min_p, typical_p.

    Attributes:
        truncation: the same settings for compiled code; None where it has no code for them or would be slow.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams):
        allowed = _allowed(tokenizer, params.allow, params.forbid)
        self._only = [] if allowed is None else [processors.only(allowed)]
        self._penalty = params.repetition_penalty
        self._recent: list[Tokens] = []
        self._temperature = params.temperature
        self._divide = None if callable(params.temperature) else processors.temperature(params.temperature)
        settings = {name: getattr(params, name) for name in ("top_k", "top_p", "min_p", "typical_p")}
        settings = {name: value for name, value in settings.items() if value is not None}
        self._filters = [getattr(processors, name)(value) for name, value in settings.items()]
        self.truncation: Truncation | None = None
        compiled = self._penalty is None and params.typical_p is None
        if compiled and (tokenizer.vocab_size <= LARGEST_UNSORTED or not self._filters):
            keep_all = Truncation()
            self.truncation = Truncation(
                top_k=min(params.top_k or keep_all.top_k, keep_all.top_k),
                top_p=params.top_p or keep_all.top_p,
                min_p=params.min_p or keep_all.min_p,
                allowed=keep_all.allowed if allowed is None else allowed,
            )

    def __call__(self, logits: Floats, step: int) -> Floats:
        """The logits `(B, V)` to draw from at `step`, counted from 0."""
        logits = checked(logits)
        for processor in self._processors(step):
            logits = processor(logits)
        return logits

    def _processors(self, step: int) -> list[LogitsProcessor]:
        divide = self._divide or processors.temperature(self._temperature_at(step))
        if self._penalty is None or not self._recent:
            return [*self._only, divide, *self._filters]
        penalise = processors.repetition_penalty(self._penalty, np.stack(self._recent, axis=-1))
        return [*self._only, penalise, divide, *self._filters]

    def _temperature_at(self, step: int) -> float:
        return self._temperature(step) if callable(self._temperature) else self._temperature

    def temperatures(self, step: int, size: int) -> NDArray[np.float64]:
        """The temperatures `(size,)` of the steps from `step` on."""
        values = [self._temperature_at(step + i) for i in range(size)]
        for value in values if self._divide is None else ():
            if not (isinstance(value, float) and 0 <= value < math.inf):  # a quick check that most pass
                processors.temperature(value)  # raises an error that says what is out of range
        return np.array(values, dtype=np.float64)

    def remember(self, tokens: Tokens) -> None:
        """Note the tokens that were drawn, `(B,)`."""
        if self._penalty is not None:
            self._recent = [*self._recent[1 - RECENT :], tokens]

    def decode_n(self, decode: Callable[[Tokens], Floats], logits: Floats, uniform: Floats, step: int) -> Tokens:
        """Draw tokens `(N, B)` with these numbers `(N, B)`; `decode` reads each before the next is drawn.

        The first is drawn from `logits` `(B, V)`. This is the readable twin of the compiled `decode_n` of the decoders.
        """
        tokens = np.empty(uniform.shape, np.int64)
        for i, row in enumerate(tokens):
            row[:] = sample(self(logits, step + i), uniform[i])
            self.remember(row)
            logits = decode(row)
        return tokens


def _allowed(tokenizer: Tokenizer, allow: str | None, forbid: str | None) -> NDArray[np.bool_] | None:
    """The tokens `(V,)` made of allowed characters alone and without a forbidden one; None: all may be drawn."""
    if allow is None and forbid is None:
        return None
    texts = [token.decode("utf-8", "replace") for token in tokenizer.token_bytes]
    characters = set("".join(texts))
    for name, wanted in (("allow", allow), ("forbid", forbid)):
        if unknown := sorted(set(wanted or "") - characters):
            raise ValueError(f"{name}: expected characters in the vocabulary, got {unknown[0]!r}")
    kept = characters if allow is None else set(allow)
    forbidden = set(forbid or "")
    if not (forbid or "").isascii():
        forbidden.add(UNKNOWN)  # a token that is half of a character may be half of this one
    allowed = np.array([kept.issuperset(text) and forbidden.isdisjoint(text) for text in texts])
    if not any(text for text, left in zip(texts, allowed, strict=True) if left):  # an end token alone writes nothing
        raise ValueError("allow, forbid: expected to leave at least one token, got none")
    return allowed
