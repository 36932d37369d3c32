"""Exercises of notebook 02."""

from charrnn.lab.exercises.exercise import Exercise

SCRATCH: dict[str, Exercise] = {}
