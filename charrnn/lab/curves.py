"""Several curves in one picture, each with its own colour, line and marker, and a band where it is uncertain."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from charrnn.lab.figures import BLUE, GREEN, GREY, ORANGE, Picture, course_style, new_figure

LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (GREY, ":", "D"))  # colour, line, marker


@course_style()
def plot_curves(
    curves: Mapping[str, Mapping[str, Any]],
    xlabel: str,
    ylabel: str,
    title: str,
    reference: tuple[str, float] | None = None,
    **limits: Any,
) -> Picture:
    """Curves by name, the first ones told apart by colour, line and marker.

    Args:
        curves: for each name `x` and `mean`, `(N,)` each, and where it has a band `low` and `high`.
        xlabel: what x is.
        ylabel: what y is.
        title: stands above.
        reference: a level to compare with, and its name.
        **limits: for the axes, as `ylim=(0, 1)` or `yscale="log"`.

    Raises:
        ValueError: more than four curves.
    """
    if len(curves) > len(LOOKS):
        raise ValueError(f"expected at most {len(LOOKS)} curves, got {len(curves)}")
    figure, axes = new_figure(8.0, 3.8)
    said = []
    for (name, curve), (color, line, marker) in zip(curves.items(), LOOKS, strict=False):
        x, mean = np.asarray(curve["x"]), np.asarray(curve["mean"])
        every = max(1, len(x) // 10)
        axes.plot(x, mean, line, marker=marker, markevery=every, color=color, linewidth=2.2, markersize=6, label=name)
        if "low" in curve:
            axes.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
        said.append(f"{name} goes from {mean[0]:.3g} to {mean[-1]:.3g}")
    if reference:
        axes.axhline(reference[1], color=GREY, linewidth=1)
        axes.annotate(
            reference[0],
            (0.01, reference[1]),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=GREY,
        )
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, **limits)
    axes.legend(frameon=False, ncols=2 if len(curves) > 3 else 1)
    ends = [np.asarray(curve["x"])[[0, -1]] for curve in curves.values()]
    begin, end = (f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in (np.min(ends), np.max(ends)))
    if np.max(ends) >= 10_000:
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    alt = f"Line chart of {ylabel} over {xlabel}, {begin} to {end}: {'; '.join(said)}."
    return Picture(figure, alt)
