"""What a network's state holds: read a text, look at every state on the way, in the plane where they differ most.

T  characters read     H  hidden_size     K  axes of the plane, two as a rule
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray
from torch import Tensor

from charrnn.characters import spoken, visible
from charrnn.lab.figures import BLUE, GREEN, GREY, ORANGE, Picture, course_style, new_figure, percent
from charrnn.models import CharModel

PURPLE, BLACK = "#AA4499", "#000000"
# how each group of characters is drawn: by colour and by shape, the place of a letter in its word by its number
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
LONGEST = 40  # characters that a picture has room for


def read_states(model: CharModel, tokens: Tensor) -> Tensor:
    """What the top layer shows after each token.

    Args:
        model: in the mode it is in; it starts with an empty memory.
        tokens: ids `(B, T)`, T at least 1.

    Returns:
        h after each token, `(B, T, H)`.
    """
    state, states = None, []
    with torch.no_grad():
        for column in tokens.split(1, dim=1):  # (B, 1)
            _, state = model(column, state)
            states.append(state[-1][0] if isinstance(state[-1], tuple) else state[-1])
    return torch.stack(states, dim=1)


# --------------------------------------------------------------------------------------------- principal components


class Components(NamedTuple):
    """The directions in which states differ most (Pearson, 1901; Hotelling, 1933).

    Attributes:
        mean: of all states, `(H,)`.
        axes: unit vectors at right angles to each other, `(K, H)`, the most telling first.
        share: of the states' variance along each axis, `(K,)`.
    """

    mean: Tensor
    axes: Tensor
    share: Tensor

    def project(self, states: Tensor) -> Tensor:
        """Places `(…, K)` of `states` `(…, H)` along the axes."""
        return (states - self.mean) @ self.axes.T


def principal_components(states: Tensor, count: int = 2) -> Components:
    """The first `count` components of `states` `(N, H)`.

    An axis may point either way; here its largest weight is positive, so that a picture is the same each time.
    """
    mean = states.mean(0)
    _, lengths, axes = torch.linalg.svd(states - mean, full_matrices=False)
    axes = axes[:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # (K, 1)
    return Components(mean, axes * largest.sign(), (lengths**2 / (lengths**2).sum())[:count])


def share_between(points: Tensor, groups: Sequence[str]) -> float:
    """Share of the variance of `points` `(N, K)` that is between groups: 0 if centres agree, 1 if each is a point."""
    points = points - points.mean(0)
    names = np.array(groups)
    within = sum(_variation(points[torch.from_numpy(names == name)]) for name in set(groups))
    return 1 - within / _variation(points)


def _variation(points: Tensor) -> float:
    return float(((points - points.mean(0)) ** 2).sum())


# ----------------------------------------------------------------------------------------------- groups of characters


def word_places(text: str) -> list[str]:
    """Of each character its place in its word; what is no letter stands between words."""
    names = list(MARKERS)[:6]
    place, places = 0, []
    for character in text:
        place = place + 1 if character.isalpha() else 0
        places.append(names[(0, 1, 2, 3, 4, 4, 5)[min(place, 6)]])
    return places


def character_kinds(text: str) -> list[str]:
    """Of each character its kind: space, newline, punctuation, vowel, consonant or capital."""

    def kind(character: str) -> str:
        if character in " \n":
            return spoken(character)
        if character.isupper():
            return "capital"
        return "punctuation" if not character.isalpha() else "vowel" if character in "aeiou" else "consonant"

    return [kind(character) for character in text]


# ------------------------------------------------------------------------------------------------------------ figures


@course_style()
def plot_states(
    points: Tensor, groups: Sequence[str], share: Tensor, title: str, path: tuple[str, Tensor] | None = None
) -> Picture:
    """States as points in a plane, each marked by its group.

    Args:
        points: `(N, 2)`.
        groups: the name of each point's, of `MARKERS`.
        share: of the variance along both axes, `(2,)`.
        title: stands above.
        path: a text and the points `(T, 2)` that it leads through.
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
    alt = (
        f"Scatter plot of {len(points)} states in a plane that holds {percent(float(share.sum()))} of their variance. "
        f"Centres of the groups: {said}{along}."
    )
    return Picture(figure, alt)


def _draw_plane(axes: Any, points: Tensor, groups: Sequence[str], share: Tensor) -> None:
    names = np.array(groups)
    for name, (color, marker) in MARKERS.items():
        if name in groups:
            x, y = points[torch.from_numpy(names == name)].T.numpy()
            size = 26 if "$" in marker else 14
            axes.scatter(x, y, s=size, color=color, marker=marker, linewidths=0.7, label=name)
    first, second = (percent(float(part)) for part in share)
    axes.set(xlabel=f"first axis: {first} of the variance", ylabel=f"second axis: {second}")


def _add_legend(axes: Any) -> None:
    legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        handle.set_sizes([50])


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
) -> Picture:
    """A matrix as colours and, while there is room, as numbers.

    Args:
        values: `(R, C)`, from `low` to 1.
        rows: names of the rows; none if there are too many to name.
        columns: names of the columns.
        title: stands above.
        marked: in each column the row that gets a frame.
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
    return Picture(figure, f"Table of {len(rows)} rows and {len(columns)} columns. {'; '.join(lines)}.")


def _draw_matrix(axes: Any, matrix: NDArray[Any], rows: Sequence[str], columns: Sequence[str], low: float) -> None:
    colours = "Blues" if low == 0 else "cividis"  # lightness runs one way in both, so they read the same without colour
    axes.imshow(matrix, aspect="auto", cmap=colours, vmin=low, vmax=1, interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if matrix.size <= 64:
        for (row, column), value in np.ndenumerate(matrix):
            light = value > 0.6 if low == 0 else value < 0  # on a dark ground
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if light else BLACK)


@course_style()
def plot_reading(
    text: str, states: Tensor, components: Components, points: Tensor, groups: Sequence[str], step: int
) -> Picture:
    """A network in the middle of a text: its state after every character so far, and its path through the plane.

    Args:
        text: T characters, T at least 1.
        states: after each of them, `(T, H)`.
        components: the axes of the plane.
        points: states of another text, `(N, 2)`, for a background.
        groups: of these.
        step: characters read, 1 to T; what is beyond counts as T. The last 40 are shown.
    """
    step = min(step, len(text))
    begin = max(0, step - LONGEST)
    seen = slice(begin, step)
    figure, (left, right) = new_figure(11.5, 3.8, 1, 2, width_ratios=[1.25, 1])
    columns = text[begin : begin + LONGEST]
    shown = np.full((states.shape[1], len(columns)), np.nan)
    order = components.axes[0].argsort(descending=True)  # units that move together stand together
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
    alt = (
        f"Two charts after reading {text[seen]!r}: a heat map of {states.shape[1]} units over these characters, and "
        f"the path through the plane, which has come to ({x:.1f}, {y:.1f}). The last character moved the state "
        f"by {change:.2f}."
    )
    return Picture(figure, alt)
