"""Diagrams: an unrolled network, and truncated backpropagation through time (TBPTT)."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from charrnn.data.characters import spoken, visible
from charrnn.lab.figures.base import BLUE, GREEN, GREY, LOOKS, ORANGE, CaptionedFigure, course_style, new_figure
from charrnn.lab.figures.glyphs import MATHEMATICS

STATES, INPUTS = 1.2, 0.0  # heights of the two rows; columns are 1 apart

FORWARD = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}

BACKWARD = FORWARD | {"color": ORANGE, "linestyle": "--"}


@course_style()
def plot_tbptt(text: str, seq_length: int) -> CaptionedFigure:
    """Draw a stream read in windows: values flow forward through all of it, gradients flow back within each window.

    Args:
        text: a few windows long; the network reads each character and predicts the next one.
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
    return CaptionedFigure(
        figure,
        f"{text!r} read in {windows} windows of {seq_length} characters",
        f"the state goes forward through all {len(text)} of them; gradients come back within each window and are cut "
        f"at the {windows - 1} borders.",
    )


def _column(axes: Any, place: int, character: str, first: bool) -> None:
    """Draw a character, the state after it, and the arrows between this state and the one before."""
    for height, name, color in ((INPUTS, visible(character), GREEN), (STATES, "h", BLUE)):
        box = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
        axes.text(place, height, name, ha="center", va="center", bbox=box, fontsize=10)
    axes.annotate("", (place, STATES - 0.3), (place, INPUTS + 0.3), arrowprops=FORWARD)
    axes.annotate("", (place - 0.24, STATES), (place - 0.76, STATES), arrowprops=FORWARD)
    if not first:
        bent = BACKWARD | {"connectionstyle": "arc3,rad=0.5"}
        axes.annotate("", (place - 0.85, STATES + 0.33), (place - 0.15, STATES + 0.33), arrowprops=bent)


def _border(axes: Any, place: float) -> None:
    """Draw a cut of the graph: the state goes on, the gradient stops."""
    axes.plot([place, place], [-0.42, 2.2], ":", color="black", linewidth=1.4)
    axes.text(place, STATES + 0.62, "✕", ha="center", va="center", color=ORANGE, fontsize=20, family="DejaVu Sans")
    axes.text(place, -0.5, "detach", ha="center", va="top", fontsize=10, family="DejaVu Sans Mono")


def _legend(axes: Any) -> None:
    axes.plot([], [], "-", color=BLUE, label="values")
    axes.plot([], [], "--", color=ORANGE, label="gradients")
    axes.plot([], [], "x", color=ORANGE, linestyle="none", markersize=8, label="no gradient passes")
    axes.legend(frameon=False, loc="lower center", ncols=3)


@course_style()
def plot_reach(text: str, seq_length: int, norms: Mapping[str, Sequence[float]]) -> CaptionedFigure:
    """Plot how much each character of a stream affects a loss, with the borders of the windows.

    Args:
        text: N characters.
        seq_length: characters of a window.
        norms: by name, norms of the gradient with respect to the embedding at each place, `(N,)` each; at most four.
    """
    figure, axes = new_figure(8.0, 2.8)
    for (name, values), (color, line, marker) in zip(norms.items(), LOOKS, strict=False):
        axes.plot(range(len(text)), values, line, marker=marker, color=color, markersize=5, label=name)
    for border in range(seq_length, len(text), seq_length):
        axes.axvline(border - 0.5, color="black", linestyle=":", linewidth=1.4)
    axes.set_xticks(range(len(text)), [visible(character) for character in text])
    axes.set(xlabel="character read; dotted: borders of the windows", ylabel="norm of the gradient")
    axes.set_title("Which characters does the loss of the last window reach?")
    axes.legend(frameon=False, loc="upper left")
    last = (len(text) - 1) // seq_length * seq_length
    said = [_before_and_in(name, np.asarray(values), last) for name, values in norms.items()]
    characters = f"{len(text)} characters, {spoken(text[0])} to {spoken(text[-1])}"
    return CaptionedFigure(figure, f"Line chart of the norm of the gradient over {characters}", f"{'; '.join(said)}.")


def _before_and_in(name: str, values: np.ndarray, last: int) -> str:
    return f"{name}: at most {values[:last].max():.2g} before the last window, {values[last:].max():.2g} in it"


ROWS = {"x": 0.0, "h": 1.3, "z": 2.6, "L": 3.9}  # inputs, states, logits, losses; columns are 1 apart

COLORS = {"x": GREEN, "h": BLUE, "z": GREY, "L": GREY}


@course_style()
def plot_unrolled(inputs: str, targets: str | None = None, backward: bool = False) -> CaptionedFigure:
    """Draw a network unrolled over a few characters.

    Args:
        inputs: the characters it reads, one column each.
        targets: the character to predict after each; None omits logits and losses.
        backward: draw the gradients that flow back, dashed, instead of the values that flow forward.

    Raises:
        ValueError: the numbers of inputs and targets differ.
    """
    if targets is not None and len(inputs) != len(targets):
        raise ValueError(f"expected a target for each input, got {len(targets)} for {len(inputs)}")
    rows = list(ROWS) if targets else ["x", "h"]
    figure, axes = new_figure(1.3 + 1.3 * len(inputs), 3.2 if targets else 1.8)
    _box(axes, 0, "h", 0)
    for t, read in enumerate(inputs, 1):
        for row in rows:
            _box(axes, t, row, t)
        _arrow(axes, (t - 1 + 0.23, ROWS["h"]), (t - 0.23, ROWS["h"]), "$W_{hh}$", backward)
        for below, above, weight in (("x", "h", "$W_{ih}$"), ("h", "z", "$W_{out}$"), ("z", "L", ""))[: len(rows) - 1]:
            _arrow(axes, (t, ROWS[below] + 0.31), (t, ROWS[above] - 0.31), weight, backward)
        axes.text(t, -0.42, f"reads {spoken(read)}", ha="center", va="top")
        if targets:
            axes.text(t, ROWS["L"] + 0.42, f"must predict {spoken(targets[t - 1])}", ha="center", va="bottom")
    axes.set(xlim=(-0.4, len(inputs) + 0.5), ylim=(-0.75, 4.65 if targets else 1.75))
    axes.set_axis_off()
    return CaptionedFigure(
        figure,
        f"A network unrolled over the {len(inputs)} characters {', '.join(map(spoken, inputs))}",
        _sentence(targets, backward),
    )


def _sentence(targets: str | None, backward: bool) -> str:
    above = f" and the logits z, and z feeds the losses L of {', '.join(map(spoken, targets))}" if targets else ""
    way = "gradients flow back along every arrow" if backward else "values flow forward along every arrow"
    return f"x feeds h, h feeds the next h{above}; {way}, and every column has the same weights."


def _box(axes: Any, column: float, row: str, index: int) -> None:
    box = {"boxstyle": "round,pad=0.32", "facecolor": "white", "edgecolor": COLORS[row], "linewidth": 1.8}
    look = {"ha": "center", "va": "center", "fontsize": 12, "bbox": box, "gid": MATHEMATICS}
    axes.text(column, ROWS[row], f"${row}_{{{index}}}$", **look)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], weight: str, backward: bool) -> None:
    """Draw an arrow from `start` to `end`, or a dashed one back, with its weight above or to the right."""
    tail, tip = (end, start) if backward else (start, end)
    color = ORANGE if backward else GREY
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "linestyle": "--" if backward else "-"}
    axes.annotate("", tip, tail, arrowprops=style | {"shrinkA": 3, "shrinkB": 3})
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if start[1] == end[1]:
        axes.text(x, y + 0.12, weight, color=color, ha="center", va="bottom", gid=MATHEMATICS)
    else:
        axes.text(x + 0.06, y, weight, color=color, ha="left", va="center", gid=MATHEMATICS)
