"""Exercises of notebook 03."""

from charrnn.lab.exercises.exercise import Exercise

MEMORY: dict[str, Exercise] = {}
