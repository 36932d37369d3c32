"""A loss that falls past the levels of models that know less."""

from collections.abc import Mapping, Sequence

import numpy as np

from charrnn.lab.figures import BLUE, GREY, Picture, course_style, new_figure


@course_style()
def plot_learning(losses: Sequence[float], levels: Mapping[str, float], title: str, smooth: int = 1) -> Picture:
    """The loss over the steps of a run, and levels to compare it with.

    Args:
        losses: nats per token, one for each step.
        levels: losses by name: of knowing nothing, of counting.
        title: stands above.
        smooth: each point is the mean over this many steps; at least 1.
    """
    values = np.convolve(losses, np.ones(smooth) / smooth, mode="valid")
    figure, axes = new_figure(7.0, 3.2)
    axes.plot(np.arange(smooth, len(losses) + 1), values, color=BLUE, linewidth=1.8)
    for name, level in levels.items():
        axes.axhline(level, color=GREY, linestyle=":", linewidth=1.4, zorder=1)
        axes.annotate(
            f"{name}: {level:.2f}",
            (1, level),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=GREY,
        )
    xlabel = f"step (each point is the mean of {smooth})" if smooth > 1 else "step"
    top = max(values.max(), *levels.values())
    axes.set(xlabel=xlabel, ylabel="nats per character", title=title, xlim=(0, len(losses)), ylim=(0, top * 1.1))
    beside = "".join(f"; {name} {level:.2f}" for name, level in levels.items())
    alt = f"Line chart over {len(losses)} steps: the loss goes from {values[0]:.2f} to {values[-1]:.2f}{beside}."
    return Picture(figure, alt)
