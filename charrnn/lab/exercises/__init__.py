"""Exercises with feedback: `check("rnn_step", f)` tests a learner's function and names its mistake.

An exercise has a solution and a list of common mistakes, each as a function with a hint. A learner's function gets the
same inputs as all of them. If it is wrong, the mistake with the same results gives the hint.
"""

from typing import Any

from charrnn.lab.exercises.exercise import (
    Exercise,
    Function,
    UnreadableResultError,
    Verdict,
    difference,
    explained,
    same,
)
from charrnn.lab.exercises.gates import GATES
from charrnn.lab.exercises.memory import MEMORY
from charrnn.lab.exercises.sampling import SAMPLING
from charrnn.lab.exercises.scratch import SCRATCH
from charrnn.lab.exercises.training import TRAINING

EXERCISES: dict[str, Exercise] = {**SCRATCH, **MEMORY, **GATES, **TRAINING, **SAMPLING}  # notebooks 02 to 06


def check(name: str, function: Function) -> Verdict:
    """Test a learner's function.

    Args:
        name: of an exercise, a key of `EXERCISES`.
        function: takes the arguments that the task names. An exception that it raises becomes part of the verdict.

    Raises:
        KeyError: there is no exercise with that name.
    """
    if name not in EXERCISES:
        raise KeyError(f"expected an exercise, one of {', '.join(sorted(EXERCISES))}, got {name!r}")
    exercise = EXERCISES[name]
    got, expected = exercise.results(function), exercise.results(exercise.solution)
    if same(got, expected):
        return Verdict(True, f"{name}: right, in all {len(got)} trials.")
    for hint, mistake in exercise.mistakes.items():
        if same(got, exercise.results(mistake)):
            return Verdict(False, f"{name}: {hint}")
    return Verdict(False, f"{name}{_problem(exercise, function, got, expected)} {exercise.brief}")


def _problem(exercise: Exercise, function: Function, got: list[Any], expected: list[Any]) -> str:
    """Describe wrong results that no known mistake explains."""
    if all(value is None for value in got):
        if exercise.changes_arguments(function):
            return " changes its arguments but returns None; return the result."
        return " is still empty: it returns None."
    if isinstance(got[-1], UnreadableResultError):
        return f" {got[-1]}"
    if isinstance(got[-1], Exception):
        return f" raised {explained(got[-1], function)}"
    return f": {difference(got, expected)}"
