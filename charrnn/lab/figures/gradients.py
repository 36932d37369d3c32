"""Figures of gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charrnn.lab.figures.base import BLUE, GREY, ORANGE, CaptionedFigure, course_style, new_figure
from charrnn.lab.figures.curves import plot_curves
from charrnn.lab.probes.gradients import cliff_loss, gradient_norms, log_slope, recurrent_matrix


@course_style()
def plot_norms(
    curves: Mapping[str, Tensor | Sequence[float]], title: str, radius: float | None = None, **limits: Any
) -> CaptionedFigure:
    """Plot norms over the lag, on a logarithmic axis.

    Args:
        curves: norms at lags 0, 1, 2, … by name; at most four.
        title: of the figure.
        radius: adds radius^lag behind the curves: a line of slope ln(radius).
        **limits: settings of the axes, such as `ylim=(1e-6, 1e6)`.
    """
    drawn = {name: {"x": np.arange(len(norms)), "mean": np.asarray(norms)} for name, norms in curves.items()}
    captioned = plot_curves(drawn, "lag: steps back", "norm", title, yscale="log", **limits)
    axes = captioned.figure.axes[0]
    axes.minorticks_off()
    if radius is None:
        return captioned
    lags = max(map(len, curves.values())) - 1
    name = f"slope ln {radius:.2f} = {math.log(radius):.3f}"
    axes.plot([0, lags], [1, radius**lags], color=GREY, alpha=0.4, linewidth=7, zorder=0, label=name)
    axes.legend(frameon=False)
    description = f"{captioned.description[:-1]}; behind, a wide straight line of {name}."
    return CaptionedFigure(captioned.figure, captioned.caption, description)


@course_style()
def plot_descents(paths: Mapping[str, Sequence[Sequence[float]]], lowest: float = -0.8) -> CaptionedFigure:
    """Draw the loss of `cliff_loss` as a map, and the paths of two gradient descents on it.

    Args:
        paths: (weight, bias) at each update, by name; at most two.
        lowest: bias at the lower edge; a path may leave the figure.
    """
    weight, bias = torch.meshgrid(torch.linspace(0.6, 2.0, 240), torch.linspace(lowest, 0.4, 240), indexing="ij")
    loss = cliff_loss(weight, bias)
    figure, axes = new_figure(7.5, 4.2)
    shades = axes.contourf(weight, bias, loss, levels=16, cmap="Greys", alpha=0.8)
    figure.colorbar(shades, ax=axes, label="loss")
    said = []
    for (name, path), (color, style) in zip(paths.items(), ((ORANGE, "s--"), (BLUE, "o-")), strict=False):
        points = np.asarray(path)
        axes.plot(*points.T, style, color=color, markersize=4, linewidth=1.5, label=name)
        begin, end = (f"({w:.2f}, {b:.2f})" for w, b in (points[0], points[-1]))
        said.append(f"{name} it goes from {begin} to {end}")
    axes.set(xlabel="weight", ylabel="bias", title="A cliff, and two paths down", xlim=(0.6, 2.0), ylim=(lowest, 0.4))
    axes.legend(loc="lower left")
    lowest_loss, highest_loss = loss.min().item(), loss.max().item()
    return CaptionedFigure(
        figure,
        "Map of the loss over weight and bias, and the paths of gradient descent on it",
        f"the loss runs from {lowest_loss:.2f} to {highest_loss:.2f}, with a cliff; {'; '.join(said)}.",
    )


def plot_radius(radius: float, matrix: str, recurrence: str, seed: int) -> CaptionedFigure:
    """Plot the gradient norm over the lag for one random network of 64 units, beside the line of slope ln(radius)."""
    norms = gradient_norms(recurrent_matrix(matrix, 64, radius, seed), 50, recurrence, seed)
    title = f"{matrix}, {recurrence}: slope {log_slope(norms):.3f}"
    return plot_norms(
        {"gradient norm": norms}, title, radius, ylim=(1e-6, 1e5)
    )  # the same limits everywhere, to compare slopes
