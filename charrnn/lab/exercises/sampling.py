"""Exercises of notebook 06."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from charrnn.lab.exercises.exercise import Exercise, randn

SAMPLING: dict[str, Exercise] = {}


def temperature_probabilities(
    logits: Tensor,
    temperature: float,
    divide: Callable[[Tensor, float], Tensor] = lambda logits, temperature: (logits - logits.max()) / temperature,
    normalise: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(-1),
    greedy: Callable[[Tensor], Tensor] = lambda logits: torch.eye(len(logits), dtype=logits.dtype)[logits.argmax()],
) -> Tensor:
    """Compute probabilities at a temperature; the options are possible mistakes."""
    return greedy(logits) if temperature == 0 else normalise(divide(logits, temperature))


SAMPLING["temperature_probabilities"] = Exercise(
    task=(
        "Take logits (V,) and a temperature of 0 or more; return the probabilities (V,) after dividing the logits by "
        "it. At 0 the largest logit gets all probability, or the first of several largest."
    ),
    solution=temperature_probabilities,
    mistakes={
        "you multiply the logits: a low temperature should sharpen, but yours flattens.": partial(
            temperature_probabilities, divide=lambda logits, temperature: logits * temperature
        ),
        "the temperature has no effect, because probabilities divided by a number keep their proportions.": partial(
            temperature_probabilities, divide=lambda logits, temperature: logits
        ),
        "these are still logits; a function has to make them positive with sum 1.": partial(
            temperature_probabilities,
            divide=lambda logits, temperature: logits / temperature,
            normalise=lambda logits: logits,
        ),
        "you divide the logits by their sum, which is meaningless with negative ones; what turns logits into "
        "probabilities?": partial(
            temperature_probabilities,
            divide=lambda logits, temperature: logits / temperature,
            normalise=lambda logits: logits / logits.sum(),
        ),
        "a tiny temperature gives NaN, since exp of a large number is inf. Subtract the largest logit first.": partial(
            temperature_probabilities,
            divide=lambda logits, temperature: logits / temperature,
            normalise=lambda logits: logits.exp() / logits.exp().sum(),
        ),
        "at temperature 0 the largest logits share the probability; the first of them should get all of it.": partial(
            temperature_probabilities,
            greedy=lambda logits: (logits == logits.max()).double() / (logits == logits.max()).sum(),
        ),
        "you treat temperature 0 like 1; 0 is the limit of ever sharper distributions.": partial(
            temperature_probabilities, greedy=lambda logits: logits.softmax(-1)
        ),
    },
    cases=lambda: [
        (randn((6,), seed=1, scale=2)[0], 0.5),
        (randn((5,), seed=2)[0] + 800, 3.0),
        (randn((7,), seed=3, scale=9)[0], 1e-4),
        (torch.tensor([0.5, 2.0, -1.0, 2.0], dtype=torch.float64), 0),
    ],
)


# ----------------------------------------------------------------------------------------------------------- top_k_mask


def _masked(logits: Tensor, kept: Tensor, out: float = -torch.inf) -> Tensor:
    """Keep the logits at the places `kept`, and put `out` elsewhere."""
    return torch.full_like(logits, out).index_copy(0, kept, logits[kept])


def _ordered(logits: Tensor) -> Tensor:
    return logits.argsort(descending=True, stable=True)


SAMPLING["top_k_mask"] = Exercise(
    task=(
        "Take logits (V,) and k, at least 1; return logits (V,) where all except the k largest are -inf. Keep the "
        "first of equal ones, and never more than k; with k > V keep all."
    ),
    solution=lambda logits, k: _masked(logits, _ordered(logits)[:k]),
    mistakes={
        "you keep more than k if several equal the k-th; count places instead of comparing values.": (
            lambda logits, k: logits.masked_fill(logits < logits.sort(descending=True)[0][:k][-1], -torch.inf)
        ),
        "you keep the last of equal ones; reversing a sort also reverses equal ones.": lambda logits, k: _masked(
            logits, logits.argsort(stable=True).flip(0)[:k]
        ),
        "you keep the smallest.": lambda logits, k: _masked(logits, logits.argsort(stable=True)[:k]),
        "masked tokens get the logit 0, which is a probability like any other. Which logit has the probability 0?": (
            lambda logits, k: _masked(logits, _ordered(logits)[:k], 0.0)
        ),
        "the kept ones are sorted; each logit has to stay at the place of its token.": lambda logits, k: _masked(
            logits[_ordered(logits)], torch.arange(min(k, len(logits)))
        ),
        "you keep one too few.": lambda logits, k: _masked(logits, _ordered(logits)[: k - 1]),
        "you return only the kept logits; the result needs all V places.": lambda logits, k: logits[
            _ordered(logits)[:k]
        ],
    },
    cases=lambda: [
        (randn((7,), seed=1)[0], 3),
        (torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, 2.0], dtype=torch.float64), 2),
        (randn((4,), seed=2)[0], 9),
    ],
)


# ----------------------------------------------------------------------------------------------------------- top_p_mask


def top_p_mask(
    logits: Tensor,
    p: float,
    order: Callable[[Tensor], Tensor] = _ordered,
    chosen: Callable[[Tensor, float], Tensor] = lambda ordered, p: ordered.cumsum(0) - ordered < p,
    out: float = -torch.inf,
) -> Tensor:
    """Keep the logits of the nucleus; the options are possible mistakes."""
    places = order(logits)
    return _masked(logits, places[chosen(logits.softmax(-1)[places], p)], out)


SAMPLING["top_p_mask"] = Exercise(
    task=(
        "Take logits (V,) and p, above 0 and below 1; keep the smallest set of likeliest tokens with a total "
        "probability of at least p; return logits (V,) where all others are -inf."
    ),
    solution=top_p_mask,
    mistakes={
        "you leave out the token that reaches p; without it the set has too little probability.": partial(
            top_p_mask, chosen=lambda ordered, p: ordered.cumsum(0) <= p
        ),
        "you keep one token too many.": partial(
            top_p_mask,
            chosen=lambda ordered, p: torch.arange(len(ordered)) <= (ordered.cumsum(0) < p).sum() + 1,
        ),
        "you add up the probabilities in the order of the vocabulary; the likeliest have to come first.": partial(
            top_p_mask, order=lambda logits: torch.arange(len(logits))
        ),
        "the likeliest come last in your sum, so you keep the tail.": partial(
            top_p_mask, order=lambda logits: logits.argsort(stable=True)
        ),
        "you compare each probability with p; their sum has to reach it.": partial(
            top_p_mask, chosen=lambda ordered, p: ordered >= p
        ),
        "you compare each probability with 1 - p; the sum of the likeliest counts.": partial(
            top_p_mask, chosen=lambda ordered, p: ordered >= 1 - p
        ),
        "you give masked tokens the logit 0, which is a probability like any other.": partial(top_p_mask, out=0.0),
        "the kept ones are sorted; each logit has to stay at the place of its token.": lambda logits, p: top_p_mask(
            logits[_ordered(logits)], p
        ),
    },
    cases=lambda: [
        (torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15], dtype=torch.float64).log(), 0.65),
        (torch.tensor([0.1, 0.7, 0.2], dtype=torch.float64).log() + 5, 0.5),
        (randn((8,), seed=1)[0], 0.8),
    ],
)


# ----------------------------------------------------------------------------------------------------------------- draw


SAMPLING["draw"] = Exercise(
    task=(
        "Take probabilities (V,) and a number u in [0, 1); return the token, an int: the first whose cumulative "
        "probability is above u."
    ),
    solution=lambda probabilities, u: int((probabilities.cumsum(0) <= u).sum()),
    mistakes={
        "at a border you draw the wrong one of two tokens, and with u = 0 even one of probability 0: is it >= or > ?": (
            lambda probabilities, u: int((probabilities.cumsum(0) < u).sum())
        ),
        "you return the token before the right one.": lambda probabilities, u: (
            int((probabilities.cumsum(0) <= u).sum()) - 1
        ),
        "you return the likeliest token for every u.": lambda probabilities, u: int(probabilities.argmax()),
        "you draw all tokens with equal probability; a likely one needs more of [0, 1).": lambda probabilities, u: int(
            u * len(probabilities)
        ),
        "you compare u with each probability, not with their running sum.": lambda probabilities, u: int(
            (probabilities > u).int().argmax()
        ),
        "torch.multinomial draws its own random numbers; here u is the random number.": lambda probabilities, u: int(
            torch.multinomial(probabilities, 1)
        ),
        "you return an index into the sorted list; which token is there?": lambda probabilities, u: int(
            (probabilities.sort(descending=True)[0].cumsum(0) <= u).sum()
        ),
    },
    cases=lambda: (
        [
            (torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25], dtype=torch.float64), u)
            for u in (0.0, 0.1, 0.25, 0.6, 0.75, 0.8, 0.999)
        ]
        + [(torch.tensor([0.125, 0.625, 0.25], dtype=torch.float64), u) for u in (0.05, 0.2, 0.7, 0.9)]
    ),
    probe=lambda token, *arguments: int(token),
)


# ----------------------------------------------------------------------------------------------------------- repetition


def repetition(
    logits: Tensor,
    recent: list[int],
    penalty: float,
    start: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    penalise: Callable[[Tensor, float], Tensor] = lambda log_p, penalty: log_p * penalty,
    places: Callable[[list[int]], list[int]] = lambda recent: sorted(set(recent)),
) -> Tensor:
    """Compute log-probabilities after a penalty; the options are possible mistakes."""
    result = start(logits)
    for token in places(recent):
        result[token] = penalise(result[token], penalty)
    return result


SAMPLING["repetition"] = Exercise(
    task=(
        "Take logits (V,), recent, a list of tokens that may contain one twice, and a penalty of 1 or more; return "
        "the log-probabilities (V,), those of recent tokens multiplied by the penalty once."
    ),
    solution=repetition,
    mistakes={
        "you divide the logits, which makes a token with a negative logit likelier.": partial(
            repetition, start=lambda logits: logits, penalise=lambda logit, penalty: logit / penalty
        ),
        "you multiply the logits, not the log-probabilities; adding a number to all logits would change the result.": (
            partial(repetition, start=lambda logits: logits)
        ),
        "this is the rule of Keskar et al., which depends on the sign of the logit; its result changes if you add a "
        "number to all logits.": partial(
            repetition,
            start=lambda logits: logits,
            penalise=lambda logit, penalty: logit / penalty if logit > 0 else logit * penalty,
        ),
        "you divide the log-probabilities; they are negative, so that makes the recent tokens likelier.": partial(
            repetition, penalise=lambda log_p, penalty: log_p / penalty
        ),
        "you penalise a token twice if recent contains it twice.": partial(repetition, places=list),
        "you penalise the tokens that are not recent.": lambda logits, recent, penalty: repetition(
            logits, [token for token in range(len(logits)) if token not in recent], penalty
        ),
    },
    cases=lambda: [
        (randn((6,), seed=1)[0], [0, 3], 1.5),
        (randn((6,), seed=2, scale=3)[0], [2, 5, 2], 1.2),
        (randn((4,), seed=3)[0] + 10, [1, 1, 0], 2.0),
    ],
)


# ------------------------------------------------------------------------------------------------------------ beam_step


def beam_step(
    totals: Tensor,
    logits: Tensor,
    width: int,
    log_p: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(-1),
    total: Callable[[Tensor, Tensor], Tensor] = lambda totals, log_p: totals[:, None] + log_p,
    largest: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the next beams; the options are possible mistakes."""
    candidates = total(totals, log_p(logits))
    best, places = candidates.flatten().topk(width, largest=largest)
    return places // logits.shape[1], places % logits.shape[1], best


def _each_on_its_own(totals: Tensor, logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Extend each beam with its own likeliest token."""
    best, tokens = logits.log_softmax(-1).max(-1)
    order = (totals + best).argsort(descending=True)
    return order[:width], tokens[order][:width], (totals + best)[order][:width]


def _rows_and_tokens_swapped(totals: Tensor, logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens, best = beam_step(totals, logits, width)
    return tokens, rows, best


def _without_history(totals: Tensor, logits: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ignore the totals of the beams."""
    return beam_step(torch.zeros_like(totals), logits, width)


def _beam_probe(returned: Any, *arguments: Any) -> list[Tensor]:
    return [torch.as_tensor(part).double() for part in returned]


SAMPLING["beam_step"] = Exercise(
    task=(
        "Take totals (W,), the log-probabilities of W texts, logits (W, V) of the token after each, and a width; "
        "return rows, tokens and totals (width,) of the likeliest continuations, the best first: which text, which "
        "token, and the log-probability of both together."
    ),
    solution=beam_step,
    mistakes={
        "you extend each text with its own likeliest token; all W V continuations compete with each other.": (
            _each_on_its_own
        ),
        "you score only the new token; add the log-probability of the text before it.": _without_history,
        "you add up logits; those of different texts are not comparable until they are log-probabilities.": (
            partial(beam_step, log_p=lambda logits: logits)
        ),
        "you add probabilities to log-probabilities; the product of two probabilities is the sum of their "
        "logarithms.": partial(beam_step, log_p=lambda logits: logits.softmax(-1)),
        "your softmax runs over all texts at once; the V probabilities of each text have to sum to 1.": partial(
            beam_step, log_p=lambda logits: logits.flatten().log_softmax(-1).view_as(logits)
        ),
        "rows and tokens are swapped: the flat index is row times V plus token.": (_rows_and_tokens_swapped),
        "you keep the least likely.": partial(beam_step, largest=False),
    },
    cases=lambda: [
        (torch.tensor([-1.0, -5.0, -1.5], dtype=torch.float64), randn((3, 6), seed=2)[0], 3),
        (torch.tensor([-1.0, -1.4], dtype=torch.float64), randn((2, 5), seed=3)[0] * 2, 2),
        (torch.zeros(1, dtype=torch.float64), randn((1, 7), seed=4)[0], 1),
    ],
    probe=_beam_probe,
)
