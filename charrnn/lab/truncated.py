"""Truncated backpropagation through time drawn: windows, the state that is carried, the gradient that is cut."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from charrnn.characters import spoken, visible
from charrnn.lab.curves import LOOKS
from charrnn.lab.figures import BLUE, GREEN, GREY, ORANGE, Picture, course_style, new_figure

STATES, INPUTS = 1.2, 0.0  # heights of the two rows; columns are 1 apart
FORWARD = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
BACKWARD = FORWARD | {"color": ORANGE, "linestyle": "--"}


@course_style()
def plot_truncated(text: str, seq_length: int) -> Picture:
    """A stream read in windows: values flow forward through all of it, gradients back within each window.

    Args:
        text: a few windows long; each character is read, and the one after it predicted.
        seq_length: characters of a window.
    """
    figure, axes = new_figure(9.5, 3.1)
    starts = range(0, len(text), seq_length)
    for number, (start, color) in enumerate(zip(starts, cycle((GREEN, GREY)), strict=False)):
        end = min(start + seq_length, len(text))
        axes.axvspan(start - 0.46, end - 0.54, ymin=0.02, ymax=0.84, color=color, alpha=0.12, linewidth=0)
        axes.text((start + end - 1) / 2, 2.55, f"window {number}: one step of the optimizer", ha="center")
        if start:
            _border(axes, start - 0.5)
    for place, character in enumerate(text):
        _column(axes, place, character, place % seq_length == 0)
    _legend(axes)
    axes.set(xlim=(-1.3, len(text) - 0.3), ylim=(-1.15, 2.95))
    axes.set_axis_off()
    windows = len(starts)
    alt = (
        f"{text!r} read in {windows} windows of {seq_length} characters: the state goes forward through all "
        f"{len(text)} of them; gradients come back within each window and are cut at the {windows - 1} borders."
    )
    return Picture(figure, alt)


def _column(axes: Any, place: int, character: str, first: bool) -> None:
    """What is read, the state after it, and the ways between this state and the one before."""
    for height, name, color in ((INPUTS, visible(character), GREEN), (STATES, "h", BLUE)):
        box = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
        axes.text(place, height, name, ha="center", va="center", bbox=box, fontsize=10)
    axes.annotate("", (place, STATES - 0.3), (place, INPUTS + 0.3), arrowprops=FORWARD)
    axes.annotate("", (place - 0.24, STATES), (place - 0.76, STATES), arrowprops=FORWARD)
    if not first:
        bent = BACKWARD | {"connectionstyle": "arc3,rad=0.5"}
        axes.annotate("", (place - 0.85, STATES + 0.33), (place - 0.15, STATES + 0.33), arrowprops=bent)


def _border(axes: Any, place: float) -> None:
    """Where the graph is cut: the state goes on, the gradient stops."""
    axes.plot([place, place], [-0.42, 2.2], ":", color="black", linewidth=1.4)
    axes.text(place, STATES + 0.62, "✕", ha="center", va="center", color=ORANGE, fontsize=20, family="DejaVu Sans")
    axes.text(place, -0.5, "detach", ha="center", va="top", fontsize=10, family="DejaVu Sans Mono")


def _legend(axes: Any) -> None:
    axes.plot([], [], "-", color=BLUE, label="values")
    axes.plot([], [], "--", color=ORANGE, label="gradients")
    axes.plot([], [], "x", color=ORANGE, linestyle="none", markersize=8, label="no gradient passes")
    axes.legend(frameon=False, loc="lower center", ncols=3)


@course_style()
def plot_reach(text: str, seq_length: int, norms: Mapping[str, Sequence[float]]) -> Picture:
    """How much each character of a stream is felt by a loss, the borders of its windows marked.

    Args:
        text: N characters.
        seq_length: characters of a window.
        norms: by name, of the gradient with respect to the embedding at each place, `(N,)` each; at most four.
    """
    figure, axes = new_figure(8.0, 2.8)
    for (name, values), (color, line, marker) in zip(norms.items(), LOOKS, strict=False):
        axes.plot(range(len(text)), values, line, marker=marker, color=color, markersize=5, label=name)
    for border in range(seq_length, len(text), seq_length):
        axes.axvline(border - 0.5, color="black", linestyle=":", linewidth=1.4)
    axes.set_xticks(range(len(text)), [visible(character) for character in text])
    axes.set(xlabel="what was read; dotted: borders of the windows", ylabel="norm of the gradient")
    axes.set_title("Which characters does the loss of the last window reach?")
    axes.legend(frameon=False, loc="upper left")
    last = (len(text) - 1) // seq_length * seq_length
    said = [_before_and_in(name, np.asarray(values), last) for name, values in norms.items()]
    alt = f"Line chart over {len(text)} characters, {spoken(text[0])} to {spoken(text[-1])}: {'; '.join(said)}."
    return Picture(figure, alt)


def _before_and_in(name: str, values: np.ndarray, last: int) -> str:
    return f"{name}: at most {values[:last].max():.2g} before the last window, {values[last:].max():.2g} in it"
