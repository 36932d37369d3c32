"""Exercises of notebook 04."""

from charrnn.lab.exercises.exercise import Exercise

GATES: dict[str, Exercise] = {}
