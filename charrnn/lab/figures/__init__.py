"""Figures of the course, each with its alt text."""
