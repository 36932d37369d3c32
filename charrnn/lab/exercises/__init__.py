"""Exercises that answer: `check("rnn_step", f)` tries a learner's function and names the mistake that it finds.

An exercise knows its solution and the mistakes that people make, each as a function with a hint. A learner's function
is put to the same test as all of them; if it is not right, the mistake whose results it shares gives the hint.
"""

from charrnn.lab.exercises.exercise import Exercise, Function, Verdict, difference, same
from charrnn.lab.exercises.gates import GATES
from charrnn.lab.exercises.memory import MEMORY
from charrnn.lab.exercises.sampling import SAMPLING
from charrnn.lab.exercises.scratch import SCRATCH
from charrnn.lab.exercises.training import TRAINING

EXERCISES: dict[str, Exercise] = {**SCRATCH, **MEMORY, **GATES, **TRAINING, **SAMPLING}  # notebooks 02 to 06


def check(name: str, function: Function) -> Verdict:
    """Try a learner's function.

    Args:
        name: of an exercise, as in `EXERCISES`.
        function: takes what the exercise's task says. What it raises is told, never raised from here.

    Raises:
        KeyError: no exercise of that name.
    """
    if name not in EXERCISES:
        raise KeyError(f"expected an exercise, one of {', '.join(sorted(EXERCISES))}, got {name!r}")
    exercise = EXERCISES[name]
    try:
        got = exercise.results(function)
    except Exception as error:  # a learner's code may raise anything
        return Verdict(False, f"{name} raised {type(error).__name__}: {error}. {exercise.task}")
    if all(value is None for value in got):
        return Verdict(False, f"{name} is still empty: it returns None. {exercise.task}")
    expected = exercise.results(exercise.solution)
    if same(got, expected):
        return Verdict(True, f"{name}: right, in all {len(got)} trials.")
    for hint, mistake in exercise.mistakes.items():
        if same(got, exercise.results(mistake)):
            return Verdict(False, f"{name}: {hint}")
    return Verdict(False, f"{name}: {difference(got, expected)} {exercise.task}")
