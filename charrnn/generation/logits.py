"""Logits processors: logits in, logits out, `(..., V)`; -inf removes a token.

    z  logits        p = softmax(z)  probabilities        H = -sum_i p_i ln p_i  their entropy

Each function below takes a setting and returns a processor. They compose: `top_p(0.9)(temperature(0.7)(logits))`. They
take numpy arrays and return float64, or PyTorch tensors and return tensors of the same kind. A logit of -inf stays
-inf; NaN is an error. A setting that `SamplingParams` refuses is a ConfigError, which is a ValueError.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charrnn.generation.sampling_params import SamplingParams
from charrnn.types import Tokens

LogitsProcessor = Callable[[Any], Any]

Array = NDArray[np.floating]

ROUNDING = 1e-12  # relative error allowed where a cumulative probability reaches its limit exactly

COLDEST = float(np.finfo(np.float64).tiny)  # a lower temperature has no finite reciprocal, so it counts as 0


def sample(logits: ArrayLike, uniform: ArrayLike) -> Tokens:
    """Draw a token from each distribution.

    Args:
        logits: `(..., V)`; -inf is never drawn.
        uniform: numbers `(...)` in [0, 1).

    Returns:
        Tokens `(...)`, int64.

    Raises:
        ValueError: a logit is NaN or infinite, or all are -inf.
    """
    logits = checked(logits)
    cumulative = np.exp(logits - logits.max(axis=-1, keepdims=True)).cumsum(axis=-1)
    point = np.asarray(uniform)[..., None] * cumulative[..., -1:]
    tokens: Tokens = (cumulative <= point).sum(axis=-1)
    return tokens


def log_softmax(logits: Array) -> Array:
    """Log-probabilities of `logits` `(..., V)`, natural: z - ln sum_i exp z_i."""
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p


def softmax(logits: Array) -> Array:
    """Probabilities of `logits` `(..., V)`."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p: Array = powers / powers.sum(axis=-1, keepdims=True)
    return p


def checked(logits: ArrayLike) -> NDArray[np.float64]:
    """`logits` `(..., V)` as an array of float64.

    Raises:
        ValueError: one is NaN or infinite, or all of a row are -inf.
    """
    array = np.asarray(logits, dtype=np.float64)
    largest = array.max(axis=-1)
    if (largest == -np.inf).any():
        raise ValueError("expected at least one token with a probability above 0, got none")
    if not np.isfinite(largest).all():  # NaN, if there is one
        got = "NaN" if np.isnan(array).any() else "infinity"
        raise ValueError(
            f"expected logits that are numbers, got {got}: the model's weights are damaged or have diverged"
        )
    return array


def _of_arrays(process: Callable[[Array], Array]) -> LogitsProcessor:
    """Compute `process` in float64, for PyTorch tensors, too."""

    def processor(logits: Any) -> Any:
        if isinstance(logits, np.ndarray):
            return process(checked(logits))
        return logits.new_tensor(process(checked(logits.cpu().double().numpy(force=True))))  # numpy has no bfloat16

    return processor


def temperature(value: float) -> LogitsProcessor:
    """z_i / value. Below 1 sharpens, above 1 flattens; 0 keeps only the likeliest token, the first of equals.

    A value below 2.2e-308 counts as 0. The temperature of Boltzmann's distribution, as in Ackley, Hinton & Sejnowski
    (1985).
    """
    SamplingParams(temperature=value)
    if value < COLDEST:
        return top_k(1)

    def divide(logits: Array) -> Array:
        with np.errstate(over="ignore"):  # the largest becomes 0 first, so that only the others can overflow, to -inf
            divided: Array = (logits - logits.max(axis=-1, keepdims=True)) / value
            return divided

    return _of_arrays(divide)


def top_k(k: int) -> LogitsProcessor:
    """Keep the k largest logits (Fan et al., 2018, arXiv:1805.04833); of equals the first, so never more than k."""
    SamplingParams(top_k=k)
    return _of_arrays(lambda logits: _keep_first(logits, -logits, lambda ordered: np.arange(ordered.shape[-1]) < k))


def top_p(p: float) -> LogitsProcessor:
    """Keep the likeliest tokens until they hold probability p together: the nucleus of Holtzman et al. (2020).

    The smallest set of likeliest tokens with sum p_i >= p (arXiv:1904.09751); at least one stays.
    """
    SamplingParams(top_p=p)
    return _of_arrays(lambda logits: _keep_first(logits, -logits, lambda ordered: _until(ordered, p)))


def min_p(share: float) -> LogitsProcessor:
    """Keep tokens with p_i >= share * max_j p_j (Nguyen et al., 2024, arXiv:2407.01082).

    The surer the model is, the fewer stay; the likeliest always does.
    """
    SamplingParams(min_p=share)
    lowest = math.log(share) - ROUNDING if share else -math.inf
    return _of_arrays(lambda logits: np.where(logits - logits.max(axis=-1, keepdims=True) >= lowest, logits, -np.inf))


def typical_p(p: float) -> LogitsProcessor:
    """Keep the tokens of the most typical surprisal that hold probability p together.

    Locally typical sampling (Meister et al., 2023, arXiv:2202.00666): in order of |-ln p_i - H|, the smallest set with
    sum p_i >= p. It may remove the likeliest token, if its surprisal is far below the entropy.
    """
    SamplingParams(typical_p=p)

    def keep(logits: Array) -> Array:
        surprisal = -log_softmax(logits)
        entropy = (np.where(np.isfinite(surprisal), surprisal, 0) * np.exp(-surprisal)).sum(axis=-1, keepdims=True)
        return _keep_first(logits, np.abs(surprisal - entropy), lambda ordered: _until(ordered, p))

    return _of_arrays(keep)


def repetition_penalty(penalty: float, recent: ArrayLike) -> LogitsProcessor:
    """Multiply ln p_i by `penalty` for each token in `recent` `(..., N)`: above 1 makes it less likely.

    A token counts once, however often it is in `recent`. One that the model is sure of, with ln p_i near 0, stays.
    After Keskar et al. (2019, arXiv:1909.05858), who divide z_i. That makes a token with a negative logit *more*
    likely, and depends on a constant added to all logits, which softmax does not see. A log-probability is never
    positive and has no such freedom.
    """
    SamplingParams(repetition_penalty=penalty)
    tokens = np.asarray(recent, dtype=np.int64)

    def penalise(logits: Array) -> Array:
        log_p = log_softmax(logits)
        places = np.broadcast_to(tokens, (*logits.shape[:-1], tokens.shape[-1]))
        np.put_along_axis(log_p, places, np.take_along_axis(log_p, places, -1) * penalty, -1)
        return log_p

    return _of_arrays(penalise)


def only(allowed: ArrayLike) -> LogitsProcessor:
    """Keep the tokens that are True in `allowed` `(V,)`.

    Raises:
        ValueError: no token is allowed.
    """
    mask = np.asarray(allowed, dtype=bool)
    if not mask.any():
        raise ValueError("expected at least one token that is allowed, got none")
    return _of_arrays(lambda logits: np.where(mask, logits, -np.inf))


class Truncation(NamedTuple):
    """The settings of the processors that compiled code applies, too; the defaults keep all tokens."""

    top_k: int = 2**31
    top_p: float = 1.0
    min_p: float = 0.0
    allowed: NDArray[np.bool_] = np.zeros(0, bool)  # (V,), as for `only`; empty: all


def _keep_first(logits: Array, keys: Array, chosen: Callable[[Array], NDArray[np.bool_]]) -> Array:
    """-inf for all but the chosen; `chosen` looks at the logits in the order of `keys`, the smallest first."""
    order = np.argsort(keys, axis=-1, kind="stable")
    ordered = np.take_along_axis(logits, order, -1)
    kept = np.empty_like(logits)
    np.put_along_axis(kept, order, np.where(chosen(ordered), ordered, -np.inf), -1)
    return kept


def _until(ordered: Array, p: float) -> NDArray[np.bool_]:
    """The first tokens, in this order, that hold probability p together."""
    held = np.cumsum(softmax(ordered), axis=-1)
    before = np.concatenate([np.zeros_like(held[..., :1]), held[..., :-1]], axis=-1)
    kept: NDArray[np.bool_] = (before < p * (1 - ROUNDING)) | (p == 1)  # with p = 1 rounding must not remove the tail
    return kept


# ------------------------------------------------------------------------------------------- temperature schedules


def linear(start: float, end: float, steps: int) -> Callable[[int], float]:
    """A temperature for each step that goes from `start` to `end` in `steps` steps and stays there.

    Raises:
        ValueError: a temperature out of range, or steps < 1.
    """
    _check_schedule(start, end, "steps", steps)
    return lambda step: start + (end - start) * min(step / steps, 1.0)


def cyclic(low: float, high: float, period: int) -> Callable[[int], float]:
    """A temperature for each step that goes from `low` to `high` and back in `period` steps, again and again.

    Raises:
        ValueError: a temperature out of range, or period < 1.
    """
    _check_schedule(low, high, "period", period)
    return lambda step: low + (high - low) * (1 - math.cos(2 * math.pi * step / period)) / 2


def _check_schedule(first: float, last: float, name: str, steps: int) -> None:
    """Refuse a wrong schedule before the text, not in the middle of it."""
    for value in (first, last):
        SamplingParams(temperature=value)
    if not steps >= 1:
        raise ValueError(f"{name}: expected at least 1, got {steps}")
