"""What an exercise is, and how a learner's results are told from the right ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        task: what the function has to do, in a sentence: arguments and result with their shapes.
        solution: does it.
        mistakes: hints, and for each a function that makes this mistake.
        cases: makes the arguments, a tuple for each call; the same at every check. Functions get copies.
        probe: what is compared: the function's result, or what can be told from it, such as gradients.
    """

    task: str
    solution: Function
    mistakes: Mapping[str, Function]
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    probe: Callable[..., Any] = lambda function, *arguments: function(*arguments)

    def results(self, function: Function) -> list[Any]:
        """What the probe finds in each case."""
        return [self.probe(function, *copied(case)) for case in self.cases()]


@dataclass(frozen=True)
class Verdict:
    """What `check` says; shown as its message.

    Attributes:
        passed: the function does what the exercise asks for.
        message: that it does, or a hint.
    """

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.message}"


def copied(value: Any) -> Any:
    """A deep copy, so that a function that writes into its arguments spoils nothing."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(map(copied, value))
    return value


def same(got: Any, expected: Any) -> bool:
    """Equal to rounding, shapes included; a list may stand for a tuple."""
    if isinstance(expected, tuple | list):
        return isinstance(got, tuple | list) and len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, Tensor):
        return (
            isinstance(got, Tensor)
            and got.shape == expected.shape
            and torch.allclose(got.double(), expected.double(), rtol=1e-6, atol=1e-8, equal_nan=True)
        )
    if isinstance(expected, float):
        return isinstance(got, int | float | Tensor) and math.isclose(float(got), expected, rel_tol=1e-6, abs_tol=1e-8)
    return bool(got == expected)


def difference(got: Any, expected: Any) -> str:
    """The first way in which a result is not the expected one, as a sentence."""
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            size = f"{len(got)} values" if isinstance(got, tuple | list) else described(got)
            return f"Expected {len(expected)} values, got {size}."
        return next(difference(a, b) for a, b in zip(got, expected, strict=True) if not same(a, b))
    if isinstance(expected, Tensor) and isinstance(got, Tensor) and got.shape == expected.shape:
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=1e-6, atol=1e-8, equal_nan=True)
        away = (got.double() - expected.double())[wrong].abs().max().item()  # -inf where it should be is no difference
        return f"The shape {tuple(got.shape)} is right, the numbers are not: they are up to {away:.2g} away."
    return f"Expected {described(expected)}, got {described(got)}."


def described(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}" if len(repr(value)) < 40 else type(value).__name__


def randn(*shapes: tuple[int, ...], seed: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Tensors of normal numbers times `scale`, float64, from one seed: for cases."""
    random = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
