"""The logits processors that the settings of a text ask for, in their order."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from charrnn.data.tokenizer import UNKNOWN, Tokenizer
from charrnn.generation import logits as transforms
from charrnn.generation.logits import Cut, LogitsProcessor, checked
from charrnn.generation.sampling_params import SamplingParams
from charrnn.types import Floats, Tokens

RECENT = 32  # tokens that the repetition penalty remembers


class LogitsPipeline:
    """What the settings make of the logits of each step: the transforms they ask for, in their order.

    That is what may be drawn at all, then what was drawn of late, then the temperature, then what is too unlikely.

    Attributes:
        cut: what a compiled path needs to do the same by itself; None if the settings ask for more.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams):
        possible = _possible(tokenizer, params.allow, params.forbid)
        self._only = None if possible is None else transforms.only(possible)
        self._penalty = params.repetition_penalty
        self._recent: list[Tokens] = []
        self._temperature = params.temperature
        self._divide = None if callable(params.temperature) else transforms.temperature(params.temperature)
        settings = {name: getattr(params, name) for name in ("top_k", "top_p", "min_p", "typical_p")}
        settings = {name: value for name, value in settings.items() if value is not None}
        self._filters = [getattr(transforms, name)(value) for name, value in settings.items()]
        self.cut: Cut | None = None
        if params.repetition_penalty is None and params.typical_p is None:
            exact = Cut(min(params.top_k or Cut().top_k, Cut().top_k), params.top_p or 1.0, params.min_p or 0.0)
            self.cut = exact if possible is None else exact._replace(possible=possible)

    def __call__(self, logits: Floats, step: int) -> Floats:
        """The logits `(B, V)` of the draw at `step`, counted from 0."""
        logits = checked(logits)
        for transform in self._transforms(step):
            logits = transform(logits)
        return logits

    def _transforms(self, step: int) -> Iterator[LogitsProcessor]:
        if self._only is not None:
            yield self._only
        if self._recent:
            yield transforms.repetition_penalty(self._penalty, np.stack(self._recent, axis=-1))
        yield self._divide or transforms.temperature(self._temperature(step))
        yield from self._filters

    def temperatures(self, step: int, size: int) -> NDArray[np.float64]:
        """The temperatures `(size,)` of the steps from `step` on."""
        if self._divide:
            return np.full(size, self._temperature, dtype=np.float64)
        values = [self._temperature(step + i) for i in range(size)]
        for value in values:
            if not (isinstance(value, float) and 0 <= value < math.inf):  # checked as quickly as most allow
                transforms.temperature(value)  # which says what is out of range
        return np.array(values, dtype=np.float64)

    def remember(self, tokens: Tokens) -> None:
        """Note what was drawn, `(B,)`."""
        if self._penalty is not None:
            self._recent = [*self._recent[1 - RECENT :], tokens]


def _possible(tokenizer: Tokenizer, allow: str | None, forbid: str | None) -> NDArray[np.bool_] | None:
    """Which tokens `(V,)` are made of allowed characters alone and have no forbidden one; None: all may be drawn."""
    if allow is None and forbid is None:
        return None
    texts = [token.decode("utf-8", "replace") for token in tokenizer.token_bytes]
    characters = set().union(*texts)
    for name, wanted in (("allow", allow), ("forbid", forbid)):
        if unknown := sorted(set(wanted or "") - characters):
            raise ValueError(f"{name}: expected characters that there are tokens for, got {unknown[0]!r}")
    allowed = characters if allow is None else set(allow)
    forbidden = set(forbid or "")
    if not (forbid or "").isascii():
        forbidden.add(UNKNOWN)  # a token that is half of a character may be half of this one
    possible = np.array([allowed.issuperset(text) and forbidden.isdisjoint(text) for text in texts])
    if not any(text for text, left in zip(texts, possible, strict=True) if left):  # an end token alone writes nothing
        raise ValueError("allow, forbid: expected to leave at least one token, got none")
    return possible
