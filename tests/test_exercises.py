"""How an exercise judges; the exercises themselves are tried in test_exercises_*.py with `assert_judged`."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from charrnn.lab.exercises import EXERCISES, check
from charrnn.lab.exercises.exercise import Exercise, difference


def assert_judged(name: str, right: Sequence[Callable[..., Any]], wrong: Sequence[Callable[..., Any]]) -> None:
    """Right answers pass; each wrong one, written as a learner would, fails with a hint of its own; so does a stub."""
    assert len(wrong) >= 3
    for answer in right:
        assert check(name, answer).passed, check(name, answer)
    verdicts = [check(name, answer) for answer in wrong]
    assert not any(verdict.passed for verdict in verdicts)
    hints = {f"{name}: {hint}" for hint in EXERCISES[name].mistakes}
    assert {verdict.message for verdict in verdicts} == hints  # every hint is given, and nothing but hints
    assert len(wrong) == len(hints)
    assert "still empty" in check(name, lambda *arguments: None).message
    zeros = check(name, lambda *arguments: torch.zeros(()))
    assert not zeros.passed


def add(a, b):
    return a + b


@pytest.fixture
def exercise(monkeypatch):
    made = Exercise(
        task="Add a and b, (3,) each.",
        solution=add,
        mistakes={"that is the difference": lambda a, b: a - b},
        cases=lambda: [(torch.arange(3.0), torch.ones(3)), (torch.zeros(3), torch.arange(3.0))],
    )
    monkeypatch.setitem(EXERCISES, "add", made)
    return made


def test_right_wrong_and_empty(exercise):
    assert repr(check("add", lambda a, b: b + a)) == "✓ add: right, in all 2 trials."
    assert repr(check("add", lambda a, b: a - b)) == "✗ add: that is the difference"
    assert check("add", lambda a, b: None).message == "add is still empty: it returns None. Add a and b, (3,) each."
    assert "up to 1 away" in check("add", lambda a, b: a).message
    assert check("add", lambda a, b: 1 / 0).message.startswith("add raised ZeroDivisionError: division by zero.")


def test_a_function_that_writes_into_its_arguments_is_judged_by_its_result(exercise):
    assert check("add", lambda a, b: a.add_(b)).passed


def test_an_unknown_exercise_lists_the_known_ones(exercise):
    with pytest.raises(KeyError, match="expected an exercise, one of add.*got 'sub'"):
        check("sub", add)


@pytest.mark.parametrize(
    ("got", "expected", "sentence"),
    [
        (torch.ones(2), torch.ones(3), "Expected a tensor (3,), got a tensor (2,)."),
        (1.0, (1.0, 2.0), "Expected 2 values, got float 1.0."),
        ([1.0, 3.0], (1.0, 2.0), "Expected float 2.0, got float 3.0."),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2)), "Expected 2 values, got 1 values."),
    ],
)
def test_a_difference_is_said(got, expected, sentence):
    assert difference(got, expected) == sentence
