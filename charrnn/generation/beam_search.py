"""Beam search: the likeliest texts, found side by side. Nothing is drawn.

At each step every text is continued with every token, and the likeliest continuations are kept. A text that has ended
is set aside and compared by its score, which makes up for its length (Wu et al., 2016, arXiv:1609.08144):

    score = ln P / ((5 + tokens) / 6)^alpha
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from charrnn.generation.logits import checked, log_softmax
from charrnn.types import Floats, Tokens

if TYPE_CHECKING:  # PyTorch takes seconds to load
    from charrnn.generation.decoder import Decoder


@dataclass(frozen=True)
class Beam:
    """A text that a beam search found.

    Attributes:
        text: the prompt and its continuation.
        log_probability: of the continuation, natural.
        tokens: length of the continuation.
        score: the number that texts are compared by.
    """

    text: str
    log_probability: float
    tokens: int
    score: float


def search(
    decoder: "Decoder",
    prompt: Tokens,
    read: Callable[[Tokens], tuple[str, bool]],
    length: int,
    width: int,
    alpha: float,
) -> list[Beam]:
    """The best `width` texts, the best first.

    Args:
        decoder: for at most `width` texts.
        prompt: tokens `(T,)` to go on from.
        read: gives the text of a prompt's continuation, and whether it has ended.
        length: tokens to generate, at most.
        width: texts that are followed side by side.
        alpha: 0 compares log-probabilities, which favours short texts; 1 nearly their means.

    Raises:
        ValueError: NaN in the logits.
    """

    def score(log_p: float, tokens: int) -> float:
        return log_p / math.pow((5 + tokens) / 6, alpha)

    logits = decoder.prefill([prompt])  # (1, V)
    totals, texts = np.zeros(1), np.empty((1, 0), dtype=np.int64)
    ended: list[Beam] = []
    while True:
        rows, tokens, totals = _continue(totals, logits, width)
        texts = np.column_stack([texts[rows], tokens])
        going = np.ones(len(texts), dtype=bool)
        for i, (each, log_p) in enumerate(zip(texts, totals.tolist(), strict=True)):
            text, has_ended = read(each)
            if has_ended or len(each) == length:
                going[i] = False
                ended.append(Beam(text, log_p, len(each), score(log_p, len(each))))
        ended = sorted(ended, key=lambda beam: -beam.score)[:width]
        if not going.any():
            return ended
        # a log-probability only falls, and no text grows longer than `length`
        if len(ended) == width and ended[-1].score >= score(float(totals[going].max()), length):
            return ended
        rows, tokens, totals, texts = rows[going], tokens[going], totals[going], texts[going]
        decoder.reorder(rows)
        logits = decoder.decode(tokens)


def _continue(totals: NDArray[np.float64], logits: Floats, width: int) -> tuple[Tokens, Tokens, NDArray[np.float64]]:
    """The likeliest continuations: row of the text, next token, log-probability, `(width,)` each."""
    candidates = totals[:, None] + log_softmax(checked(logits))  # (B, V)
    best = np.argsort(-candidates, axis=None, kind="stable")[:width]
    rows, tokens = np.unravel_index(best, candidates.shape)
    return rows, tokens, candidates[rows, tokens]
