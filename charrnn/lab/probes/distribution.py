"""The distribution of the next token, before and after the settings of sampling: its picture, and sliders over it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import softmax
from charrnn.generation.pipeline import RECENT, LogitsPipeline
from charrnn.generation.sampling_params import SamplingParams

Probabilities = NDArray[np.floating]


def next_distribution(
    generator: TextGenerator,
    prompt: str,
    temperature: float | Callable[[int], float] = 1.0,
    drawn: str = "",
    **settings: Any,
) -> tuple[Probabilities, Probabilities]:
    """Probabilities of the token after `prompt` and `drawn`: as the model has them, and as the settings leave them.

    Args:
        generator: its model reads.
        prompt: what it was given; empty starts after a newline.
        temperature: as `TextGenerator.generate` takes it.
        drawn: what it has written since, which a repetition penalty and a temperature that changes look at.
        **settings: top_k, top_p, min_p, typical_p, repetition_penalty, allow, forbid, as for `generate`.

    Returns:
        Two arrays `(V,)`, float64, each of sum 1. What is left out has probability 0.

    Raises:
        UnknownCharacterError: a character outside the vocabulary.
        ValueError: a setting out of range.
    """
    reshape = LogitsPipeline(generator.tokenizer, SamplingParams(temperature=temperature, **settings))
    tokens = generator.tokenizer.encode(drawn)
    for token in tokens[-RECENT:]:
        reshape.remember(np.array([token], dtype=np.int64))
    logits = np.asarray(generator.next_logits(prompt + drawn), dtype=np.float64)
    return softmax(logits), softmax(reshape(logits[None], len(tokens))[0])


def entropy(probabilities: Probabilities) -> float:
    """Mean surprisal -sum_i p_i log2 p_i in bits of a distribution `(V,)` (Shannon, 1948)."""
    present = probabilities[probabilities > 0]
    return max(0.0, -float(present @ np.log2(present)))  # never -0.0


def next_character_probabilities(generator: TextGenerator, prompt: str, count: int = 10) -> list[tuple[str, float]]:
    """The `count` likeliest characters after `prompt` and their probabilities, the likeliest first."""
    probabilities = softmax(generator.next_logits(prompt))
    order = np.argsort(-probabilities, kind="stable")[:count]
    likeliest = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [(generator.tokenizer.decode([token]), probability) for token, probability in likeliest]


@dataclass(frozen=True)
class Choice:
    """A character that was chosen.

    Attributes:
        character: what it is.
        bits: its surprisal.
        expected: the surprisal that was to be expected there: the entropy of the distribution.
    """

    character: str
    bits: float
    expected: float


def choose(generator: TextGenerator, text: str, character: str) -> Choice:
    """`character` as the one that follows `text`.

    Raises:
        UnknownCharacterError: it or the text is outside the vocabulary.
    """
    (token,) = generator.tokenizer.encode(character)
    probabilities = softmax(np.asarray(generator.next_logits(text), dtype=np.float64))
    return Choice(character, 0.0 - float(np.log2(probabilities[token])), entropy(probabilities))


def tally(choices: Sequence[Choice]) -> str:
    """A sentence: how surprising the choices were, and how surprising draws would have been expected to be."""
    if not choices:
        return "Nothing is chosen yet."
    bits, expected = sum(each.bits for each in choices), sum(each.expected for each in choices)
    verdict = "more" if bits > expected else "less"
    return (
        f"{len(choices)} chosen, with {bits:.1f} bits. The model expected {expected:.1f}, the sum of its entropies: "
        f"your choices surprise it {verdict} than draws would."
    )
