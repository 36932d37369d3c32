"""An exercise, and the comparison of a learner's results with the correct ones."""

import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


class UnreadableResultError(Exception):
    """A learner's function returned a value that the probe cannot read; the message describes it."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        task: the task in a sentence, with the shapes of arguments and result.
        solution: a correct function.
        mistakes: for each hint a function that makes the mistake.
        cases: makes the arguments, a tuple for each call, the same at every check. Functions get copies.
        probe: takes the returned value and the arguments, and returns the values to compare, such as gradients.
    """

    task: str
    solution: Function
    mistakes: Mapping[str, Function]
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    probe: Callable[..., Any] = lambda returned, *arguments: returned

    @property
    def brief(self) -> str:
        """The task, and the precision of its tensors."""
        return self.task + (" All tensors are float64." if has_tensors(self.cases()) else "")

    def results(self, function: Function) -> list[Any]:
        """Collect the probe's result for each case, from a fixed global seed; an exception ends the list."""
        found: list[Any] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for case in self.cases():
                arguments = copied(case)
                try:
                    returned = function(*arguments)
                except Exception as error:  # a learner's code may raise anything
                    return [*found, error]
                try:
                    found.append(None if returned is None else self.probe(returned, *arguments))
                except Exception as error:  # a learner's function may return anything
                    return [*found, UnreadableResultError(f"returned {described(returned)}: {str(error).rstrip('.')}.")]
        return found

    def changes_arguments(self, function: Function) -> bool:
        """Tell whether the function changes its arguments or leaves a gradient on one."""
        case = self.cases()[0]
        arguments = copied(case)
        function(*arguments)
        return not same(arguments, case) or any(isinstance(a, Tensor) and a.grad is not None for a in arguments)


@dataclass(frozen=True)
class Verdict:
    """The result of `check`; it is displayed as its message.

    Attributes:
        passed: whether the function is correct.
        message: a confirmation or a hint.
    """

    passed: bool
    message: str

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.message}"


def copied(value: Any) -> Any:
    """Make a deep copy, so that a function may change its arguments."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(map(copied, value))
    return value


def has_tensors(value: Any) -> bool:
    """Tell whether a value is, or contains, a tensor of floats or a model."""
    if isinstance(value, tuple | list):
        return any(map(has_tensors, value))
    return isinstance(value, torch.nn.Module) or (isinstance(value, Tensor) and value.is_floating_point())


def same(got: Any, expected: Any) -> bool:
    """Compare values up to rounding, including shapes; a list equals a tuple."""
    if isinstance(got, Exception) or isinstance(expected, Exception):
        return type(got) is type(expected) and str(got) == str(expected)
    if isinstance(expected, tuple | list):
        return isinstance(got, tuple | list) and len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, Tensor):
        return (
            isinstance(got, Tensor)
            and got.shape == expected.shape
            and torch.allclose(got.double(), expected.double(), rtol=1e-6, atol=1e-8, equal_nan=True)
        )
    if isinstance(got, Tensor) and got.shape == ():
        got = got.item()
    if isinstance(expected, float):
        return isinstance(got, int | float) and math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-8)
    return not isinstance(got, Tensor) and bool(got == expected)


def difference(got: Any, expected: Any) -> str:
    """Describe the first difference from the expected result in a sentence."""
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            size = f"{len(got)} values" if isinstance(got, tuple | list) else described(got)
            return f"Expected {len(expected)} values, got {size}."
        return next(difference(a, b) for a, b in zip(got, expected, strict=True) if not same(a, b))
    if isinstance(expected, Tensor) and isinstance(got, Tensor) and got.shape == expected.shape:
        wrong = ~torch.isclose(got.double(), expected.double(), rtol=1e-6, atol=1e-8, equal_nan=True)
        away = (got.double() - expected.double())[wrong].abs().max().item()  # -inf where it should be is no difference
        precision = "" if got.dtype == expected.dtype else f" They are {described(got.dtype)}."
        return f"The shape {tuple(got.shape)} is right, the numbers are not: they are up to {away:.2g} away.{precision}"
    if isinstance(expected, Tensor) and expected.shape == () and isinstance(got, float):
        return "Expected a tensor, got a plain number: leave out .item(), so that a gradient can flow back."
    return f"Expected {described(expected)}, got {described(got)}."


def described(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return f"{type(value).__name__} {value!r}" if len(repr(value)) < 40 else type(value).__name__


ADVICE = {  # a pattern in an error's message: what to do
    "Expected target size": "F.cross_entropy takes the second axis for the vocabulary: flatten logits to (B T, V), or "
    "transpose them to (B, V, T).",
    "dtype|Double|double": "A new tensor is float32 unless you say dtype=torch.float64.",
}


def explained(error: Exception, function: Function) -> str:
    """Describe an error in a learner's function: type, line, message, and advice."""
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    where = f" in line {lines[-1].lineno}, `{lines[-1].line}`" if lines else ""
    advice = next((f" {text}" for part, text in ADVICE.items() if re.search(part, str(error))), "")
    return f"{type(error).__name__}{where}: {str(error).rstrip('.')}.{advice}"


def randn(*shapes: tuple[int, ...], seed: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Make float64 tensors of normal numbers times `scale` from one seed, for the cases."""
    random = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
