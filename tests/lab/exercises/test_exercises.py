"""The verdicts of `check`; the other files of this folder test each exercise with `assert_judged`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from charrnn.lab.exercises import EXERCISES, check
from charrnn.lab.exercises.exercise import Exercise, difference, has_tensors


def assert_judged(name: str, right: Sequence[Callable[..., Any]], wrong: Sequence[Callable[..., Any]]) -> None:
    """Check that right answers pass, and that each wrong one, written as a learner would, gets its own hint."""
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
        cases=lambda: [(three.double(), torch.ones(3).double()) for three in (torch.arange(3.0), torch.zeros(3))],
    )
    monkeypatch.setitem(EXERCISES, "add", made)
    return made


def test_right_wrong_and_empty(exercise):
    assert repr(check("add", lambda a, b: b + a)) == "✓ add: right, in all 2 trials."
    assert repr(check("add", lambda a, b: a - b)) == "✗ add: that is the difference"
    empty = "add is still empty: it returns None. Add a and b, (3,) each. All tensors are float64."
    assert check("add", lambda a, b: None).message == empty
    assert "up to 1 away" in check("add", lambda a, b: a).message


def test_an_error_is_told_with_its_line(exercise):
    def faulty(a, b):
        total = a + b
        return total.reshape(2, 2)

    line = faulty.__code__.co_firstlineno + 2
    message = check("add", faulty).message
    assert message.startswith(f"add raised RuntimeError in line {line}, `return total.reshape(2, 2)`: shape '[2, 2]'")
    assert "dtype=torch.float64" in check("add", lambda a, b: torch.eye(3).double() @ b.float()).message
    assert (
        "Expected target size"
        in check(
            "add", lambda a, b: torch.nn.functional.cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3).long())
        ).message
    )


def test_a_function_that_changes_its_arguments_and_returns_nothing_is_not_empty(exercise):
    def in_place(a, b):
        a += b

    assert "changes its arguments but returns None; return the result." in check("add", in_place).message


def test_a_result_that_cannot_be_read_is_no_error_of_the_learner(monkeypatch, exercise):
    monkeypatch.setitem(EXERCISES, "add", replace(exercise, probe=lambda returned, a, b: returned.sum().item()))
    assert check("add", lambda a, b: 1.5).message.startswith("add returned float 1.5: ")
    for name in ("cosine_schedule", "count_parameters", "draw"):
        message = check(name, lambda *arguments: torch.ones(3)).message
        assert "raised" not in message
        assert "a tensor (3,)" in message


@pytest.mark.parametrize("name", EXERCISES)
def test_tasks_state_the_precision_and_cases_have_it(name):
    def tensors(value):
        if isinstance(value, torch.nn.Module):
            return list(value.parameters())
        return [t for part in value for t in tensors(part)] if isinstance(value, tuple | list) else [value]

    found = [t for t in tensors(EXERCISES[name].cases()) if has_tensors(t)]
    assert {t.dtype for t in found} <= {torch.float64}
    assert ("All tensors are float64." in check(name, lambda *arguments: None).message) == bool(found)


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
        (
            torch.ones(2),
            torch.zeros(2).double(),
            "The shape (2,) is right, the numbers are not: they are up to 1 away. They are float32.",
        ),
    ],
)
def test_a_difference_is_said(got, expected, sentence):
    assert difference(got, expected) == sentence
