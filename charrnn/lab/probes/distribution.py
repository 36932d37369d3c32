"""The distribution of the next token, before and after the sampling settings, and draws from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import softmax
from charrnn.generation.pipeline import RECENT, LogitsPipeline
from charrnn.generation.sampling_params import SamplingParams
from charrnn.models.recurrent import evaluation_view

Probabilities = NDArray[np.floating]


def next_distribution(
    generator: TextGenerator,
    prompt: str,
    temperature: float | Callable[[int], float] = 1.0,
    drawn: str = "",
    **settings: Any,
) -> tuple[Probabilities, Probabilities]:
    """Compute the probabilities of the token after `prompt` and `drawn`, before and after the settings.

    Args:
        generator: the network.
        prompt: the text it was given; an empty one stands for a newline.
        temperature: as for `TextGenerator.generate`.
        drawn: the text written since, for a repetition penalty and a temperature that changes.
        **settings: top_k, top_p, min_p, typical_p, repetition_penalty, allow, forbid, as for `generate`.

    Returns:
        Two arrays `(V,)`, float64, each with sum 1. A masked token has probability 0.

    Raises:
        UnknownCharacterError: a character is outside the vocabulary.
        ValueError: a setting is out of range.
    """
    reshape = LogitsPipeline(generator.tokenizer, SamplingParams(temperature=temperature, **settings))
    tokens = generator.tokenizer.encode(drawn)
    for token in tokens[-RECENT:]:
        reshape.remember(np.array([token], dtype=np.int64))
    logits = np.asarray(generator.next_logits(prompt + drawn), dtype=np.float64)
    return softmax(logits), softmax(reshape(logits[None], len(tokens))[0])


def entropy(probabilities: Probabilities) -> float:
    """Compute the entropy -sum_i p_i log2 p_i of a distribution `(V,)`, in bits (Shannon, 1948)."""
    present = probabilities[probabilities > 0]
    return max(0.0, -float(present @ np.log2(present)))  # never -0.0


def next_character_probabilities(generator: TextGenerator, prompt: str, count: int = 10) -> list[tuple[str, float]]:
    """Find the `count` likeliest characters after `prompt` and their probabilities, the likeliest first."""
    probabilities = softmax(generator.next_logits(prompt))
    order = np.argsort(-probabilities, kind="stable")[:count]
    likeliest = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [(generator.tokenizer.decode([token]), probability) for token, probability in likeliest]


@dataclass(frozen=True)
class Choice:
    """A chosen character.

    Attributes:
        character: the character.
        bits: its surprisal.
        expected: the expected surprisal, which is the entropy of the distribution.
    """

    character: str
    bits: float
    expected: float


def choose(generator: TextGenerator, text: str, character: str) -> Choice:
    """Choose `character` as the one that follows `text`.

    Raises:
        UnknownCharacterError: a character is outside the vocabulary.
    """
    (token,) = generator.tokenizer.encode(character)
    probabilities = softmax(np.asarray(generator.next_logits(text), dtype=np.float64))
    return Choice(character, 0.0 - float(np.log2(probabilities[token])), entropy(probabilities))


def tally(choices: Sequence[Choice]) -> str:
    """Compare the surprisal of the choices with the expected surprisal of draws, in a sentence."""
    if not choices:
        return "No character chosen yet."
    bits, expected = sum(each.bits for each in choices), sum(each.expected for each in choices)
    verdict = "more" if bits > expected else "less"
    return (
        f"{len(choices)} chosen, with {bits:.1f} bits. The model expected {expected:.1f}, the sum of its entropies, so "
        f"your choices surprise it {verdict} than draws would."
    )


def tail_after_slip(
    generator: TextGenerator, texts: int, length: int, seed: int, tail: float = 0.001
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure the probability of a slip, a token less likely than `tail`, after a forced slip and without one.

    Each text begins with 100 tokens drawn at temperature 1. Then it goes on twice: with a token from the tail, and with
    one from outside it.

    Returns:
        The probability of the tail at each following place, `(texts, length)` each.
    """
    random = torch.Generator().manual_seed(seed)
    model = evaluation_view(generator.model)
    begun = generator.generate_batch([""] * texts, 100, seed=seed)
    tokens = torch.from_numpy(np.stack([generator.tokenizer.encode("\n" + text) for text in begun]).astype(np.int64))
    with torch.no_grad():
        logits, start = model(tokens)
        p = logits[:, -1].softmax(-1)
        held = []
        for first in (p * (p < tail), p * (p >= tail)):
            token, state, places = torch.multinomial(first, 1, generator=random), start, []
            for _ in range(length):
                logits, state = model(token, state)
                q = logits[:, -1].softmax(-1)
                places.append((q * (q < tail)).sum(-1))
                token = torch.multinomial(q, 1, generator=random)
            held.append(torch.stack(places, dim=1).double().numpy())
    return held[0], held[1]
