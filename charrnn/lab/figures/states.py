"""Figures of states."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray
from torch import Tensor

from charrnn.data.characters import visible
from charrnn.lab.figures.base import BLUE, GREEN, GREY, ORANGE, CaptionedFigure, course_style, new_figure
from charrnn.lab.figures.labels import percent
from charrnn.lab.probes.states import Components

PURPLE, BLACK = "#AA4499", "#000000"

# colour and shape of each group of characters; a number is the place of a letter in its word
MARKERS = {
    "between words": (GREY, "s"),
    "1st letter": (BLUE, "$1$"),
    "2nd letter": (ORANGE, "$2$"),
    "3rd letter": (GREEN, "$3$"),
    "4th or 5th": (PURPLE, "$4$"),
    "6th or later": (BLACK, "$6$"),
    "space": (GREY, "s"),
    "newline": (BLACK, "x"),
    "punctuation": (GREEN, "^"),
    "vowel": (ORANGE, "o"),
    "consonant": (BLUE, "+"),
    "capital": (PURPLE, "D"),
}

LONGEST = 40  # characters that fit into a figure


# ------------------------------------------------------------------------------------------------------------ figures


@course_style()
def plot_states(
    points: Tensor, groups: Sequence[str], share: Tensor, title: str, path: tuple[str, Tensor] | None = None
) -> CaptionedFigure:
    """Draw states as points in a plane, each marked by its group.

    Args:
        points: `(N, 2)`.
        groups: for each point a key of `MARKERS`.
        share: share of the variance along each axis, `(2,)`.
        title: of the figure.
        path: a text and the points `(T, 2)` on its path.
    """
    figure, axes = new_figure(7.2, 4.4)
    _draw_plane(axes, points, groups, share)
    axes.set_title(title)
    _add_legend(axes)
    if path:
        _draw_path(axes, *path)
    names = np.array(groups)
    centres = {name: points[torch.from_numpy(names == name)].mean(0) for name in MARKERS if name in groups}
    said = ", ".join(f"{name} ({x:.1f}, {y:.1f})" for name, (x, y) in centres.items())
    along = f"; the path of {path[0]!r} is drawn through them" if path else ""
    return CaptionedFigure(
        figure,
        f"Scatter plot of {len(points)} states in a plane that holds {percent(float(share.sum()))} of their variance",
        f"the groups have their centres at {said}{along}.",
    )


def _draw_plane(axes: Any, points: Tensor, groups: Sequence[str], share: Tensor) -> None:
    names = np.array(groups)
    for name, (color, marker) in MARKERS.items():
        if name in groups:
            x, y = points[torch.from_numpy(names == name)].T.numpy()
            size = 26 if "$" in marker else 14
            axes.scatter(x, y, s=size, color=color, marker=marker, linewidths=0.7, label=name)
    first, second = (percent(float(part)) for part in share)
    axes.set(xlabel=f"first axis: {first} of the variance", ylabel=f"second axis: {second}")


def _draw_path(axes: Any, text: str, points: Tensor) -> None:
    x, y = points.T.numpy()
    axes.update_datalim(np.stack([x, y], axis=1))
    axes.autoscale_view()
    arrow = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 8, "shrinkB": 8}
    for start, end in pairwise(zip(x, y, strict=True)):
        axes.add_patch(FancyArrowPatch(start, end, color=BLACK, linewidth=0.9, zorder=3, **arrow))
    box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": BLACK, "linewidth": 0.8}
    for character, place in zip(text, zip(x, y, strict=True), strict=True):
        axes.annotate(visible(character), place, ha="center", va="center", fontsize=9, bbox=box, zorder=4)


@course_style()
def plot_matrix(
    values: Tensor | NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    marked: Sequence[int] = (),
    low: float = 0.0,
) -> CaptionedFigure:
    """Draw a matrix as colours and, if there is room, as numbers.

    Args:
        values: `(R, C)`, from `low` to 1.
        rows: names of the rows; empty if there are too many.
        columns: names of the columns.
        title: of the figure.
        marked: the row to frame in each column.
        low: 0 for probabilities, -1 for states.
    """
    matrix = np.asarray(values)
    figure, axes = new_figure(2.2 + 0.75 * len(columns), 1.2 + 0.42 * len(rows))
    _draw_matrix(axes, matrix, rows, columns, low)
    for column, row in enumerate(marked):
        frame = {"fill": False, "edgecolor": BLACK, "linewidth": 2.2}
        axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, **frame))
    axes.set_title(title, fontsize=11)
    lines = (
        f"{column}: {', '.join(f'{row} {value:.2f}' for row, value in zip(rows, matrix[:, i], strict=True))}"
        for i, column in enumerate(columns)
    )
    return CaptionedFigure(figure, f"Table of {len(rows)} rows and {len(columns)} columns", f"{'; '.join(lines)}.")


def _draw_matrix(axes: Any, matrix: NDArray[Any], rows: Sequence[str], columns: Sequence[str], low: float) -> None:
    colours = "Blues" if low == 0 else "cividis"  # lightness is monotonic in both, so they also work without colour
    axes.imshow(matrix, aspect="auto", cmap=colours, vmin=low, vmax=1, interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if matrix.size <= 64:
        for (row, column), value in np.ndenumerate(matrix):
            light = value > 0.6 if low == 0 else value < 0  # on a dark background
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if light else BLACK)


@course_style()
def plot_reading(
    text: str, states: Tensor, components: Components, points: Tensor, groups: Sequence[str], step: int
) -> CaptionedFigure:
    """Draw the state after every character so far, and its path through the plane.

    Args:
        text: T characters, T at least 1.
        states: after each of them, `(T, H)`.
        components: the axes of the plane.
        points: states of another text, `(N, 2)`, as a background.
        groups: of these points.
        step: the number of characters read, from 1; more than T counts as T. The last 40 are shown.
    """
    step = min(step, len(text))
    begin = max(0, step - LONGEST)
    seen = slice(begin, step)
    figure, (left, right) = new_figure(11.5, 3.8, 1, 2, width_ratios=[1.25, 1])
    columns = text[begin : begin + LONGEST]
    shown = np.full((states.shape[1], len(columns)), np.nan)
    order = components.axes[0].argsort(descending=True)  # neighbouring units move together
    shown[:, : step - begin] = states[seen][:, order].T.numpy()
    _draw_matrix(left, shown, [], [visible(character) for character in columns], low=-1)
    left.set(ylabel=f"the {states.shape[1]} units, by the first axis", xlabel="character read")
    left.set_title("The state: light is +1, dark −1", fontsize=11)
    left.axvspan(step - begin - 1.5, step - begin - 0.5, fill=False, edgecolor=BLACK, linewidth=1.5)
    _draw_plane(right, points, groups, components.share)
    _draw_path(right, text[seen], components.project(states[seen]))
    _add_legend(right)
    right.set_title("Its path through the plane", fontsize=11)
    change = (states[step - 1] - (states[step - 2] if step > 1 else 0)).norm().item()
    x, y = components.project(states[step - 1]).tolist()
    return CaptionedFigure(
        figure,
        f"Heat map of {states.shape[1]} units after reading {text[seen]!r}, and the path of the state in the plane",
        f"the path has come to ({x:.1f}, {y:.1f}). The last character moved the state by {change:.2f}.",
    )


def _add_legend(axes: Any) -> None:
    legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        handle.set_sizes([50])
