"""Line charts: losses, schedules, and measures over an axis."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from charrnn.lab.figures.base import BLUE, GREY, LOOKS, ORANGE, CaptionedFigure, course_style, new_figure

Records = Sequence[Mapping[str, Any]]


def loss_points(records: Records, event: str) -> list[tuple[int, float]]:
    """Collect (step, loss) of the `logged` or `evaluated` records."""
    return [(record["step"], record["loss"]) for record in records if record["event"] == event]


def draw_losses(axes: Any, records: Records) -> list[str]:
    """Draw training and validation loss over the steps, and describe both."""
    said = []
    looks = (("logged", "training", BLUE, "-"), ("evaluated", "validation", ORANGE, "o--"))
    for event, label, color, style in looks:
        points = loss_points(records, event)
        if not points:
            said.append(f"no {label} loss")
            continue
        style = style if len(points) > 1 else "o"
        axes.plot(*zip(*points, strict=True), style, color=color, markersize=4, label=label)
        first, last = points[0][1], points[-1][1]
        said.append(
            f"{label} loss goes from {first:.3f} to {last:.3f}" if len(points) > 1 else f"{label} loss {last:.3f}"
        )
    return said


@course_style()
def plot_measures(measures: Mapping[str, Mapping[str, Mapping[int, float]]]) -> CaptionedFigure:
    """Plot several measures side by side, each with a curve for every network.

    Args:
        measures: title -> network -> lag or context (at least 1) -> value. A title that contains "gradient" gives a
            logarithmic axis.
    """
    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    said = []
    for axes, (measure, curves) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        for (name, curve), (color, line, marker) in zip(curves.items(), LOOKS, strict=False):
            x, y = list(curve), list(curve.values())
            every = max(1, len(x) // 8)
            axes.plot(x, y, line, marker=marker, markevery=every, color=color, markersize=5, label=name)
            said.append(f"{measure}, {name}: {y[0]:.2g} at {x[0]} to {y[-1]:.2g} at {x[-1]}")
        scale: dict[str, Any] = {"yscale": "log"} if "gradient" in measure else {}
        xlabel = "characters back" if scale else "characters read"
        axes.set(xscale="log", xlabel=xlabel, title=measure, **scale)
        ticks = [value for value in (1, 4, 16, 64, 256) if value <= x[-1]]
        axes.set_xticks(ticks, [str(value) for value in ticks])
        axes.spines[["top", "right"]].set_visible(False)
        axes.minorticks_off()
    axes.legend(frameon=False)
    return CaptionedFigure(figure, f"Line charts of {', '.join(measures)}", f"{'; '.join(said)}.")


@course_style()
def plot_curve(x: Sequence[float], y: Sequence[float], xlabel: str, ylabel: str, title: str) -> CaptionedFigure:
    """Plot points joined by a line, each with its value, over a y axis that starts at 0.

    Args:
        x: from left to right.
        y: as many.
        xlabel: label of x.
        ylabel: label of y.
        title: of the figure.
    """
    figure, axes = new_figure()
    axes.plot(x, y, "o-", color=BLUE)
    for place in zip(x, y, strict=True):
        axes.annotate(f"{place[1]:.2f}", place, (0, 7), textcoords="offset points", ha="center")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xticks=x, ylim=(0, max(y) * 1.18))
    description = f"{y[0]:.2f} at {x[0]:g} to {y[-1]:.2f} at {x[-1]:g}."
    return CaptionedFigure(figure, f"Line chart of {ylabel} over {xlabel}", description)


@course_style()
def plot_losses(records: Records, vocab_size: int, title: str = "Learning") -> CaptionedFigure:
    """Plot training and validation loss over the steps of a run.

    Args:
        records: dictionaries with `event` (`logged` or `evaluated`), `step` and `loss`, as in `metrics.jsonl`.
        vocab_size: V, for a line at the loss of a model that knows nothing, ln V.
        title: of the figure.
    """
    figure, axes = new_figure()
    uniform = math.log(vocab_size)
    axes.axhline(uniform, color=GREY, linestyle=":", linewidth=1.5)
    axes.annotate(
        f"knowing nothing: ln {vocab_size} = {uniform:.2f}",
        (0.99, uniform),
        (0, -4),
        ha="right",
        va="top",
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=GREY,
    )
    said = draw_losses(axes, records)
    axes.set(xlabel="step", ylabel="nats per character", title=title, xlim=(0, None), ylim=(0, uniform * 1.05))
    if records:
        axes.legend(frameon=False, loc="lower left")
    steps = max((record["step"] for record in records), default=0)
    description = f"{' and '.join(said)}; a model that knows nothing has {uniform:.2f}."
    return CaptionedFigure(figure, f"Line chart of the loss over {steps} steps", description)


@course_style()
def plot_curves(
    curves: Mapping[str, Mapping[str, Any]],
    xlabel: str,
    ylabel: str,
    title: str,
    reference: tuple[str, float] | None = None,
    **limits: Any,
) -> CaptionedFigure:
    """Plot up to four named curves that differ in colour, line and marker.

    Args:
        curves: for each name `x` and `mean`, `(N,)` each, and for a band `low` and `high`.
        xlabel: label of x.
        ylabel: label of y.
        title: of the figure.
        reference: name and value of a level to compare with.
        **limits: settings of the axes, such as `ylim=(0, 1)` or `yscale="log"`.

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
    return CaptionedFigure(figure, f"Line chart of {ylabel} over {xlabel}, {begin} to {end}", f"{'; '.join(said)}.")


@course_style()
def plot_learning(losses: Sequence[float], levels: Mapping[str, float], title: str, smooth: int = 1) -> CaptionedFigure:
    """Plot the loss over the steps of a run, with levels to compare it with.

    Args:
        losses: nats per token, one for each step.
        levels: losses of baselines by name.
        title: of the figure.
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
    description = f"it goes from {values[0]:.2f} to {values[-1]:.2f}{beside}."
    return CaptionedFigure(figure, f"Line chart of the loss over {len(losses)} steps", description)


@course_style()
def plot_overfitting(runs: Mapping[str, Records], stops: Mapping[str, int | None] | None = None) -> CaptionedFigure:
    """Draw a chart for each run: training loss, validation loss with its lowest point marked, and the early stop.

    Args:
        runs: records as in `metrics.jsonl` by name; each run was logged and evaluated.
        stops: for each run the step of its early stop, or None.
    """
    figure, panels = new_figure(3.2 * len(runs), 3.3, 1, len(runs), sharey=True, squeeze=False)
    said = []
    for axes, (name, records) in zip(panels[0], runs.items(), strict=True):
        draw_losses(axes, records)
        logged, evaluated = loss_points(records, "logged"), loss_points(records, "evaluated")
        step, lowest = min(evaluated, key=lambda point: point[1])
        axes.plot(step, lowest, "*", color=ORANGE, markersize=15, markeredgecolor="black", label="lowest")
        stop = (stops or {}).get(name)
        if stop is not None:
            axes.axvline(stop, color="black", linestyle=":", linewidth=1.5, label="early stop")
        axes.set(title=name, xlabel="step", xlim=(0, None))
        stopped = "never stopped" if stop is None else f"stopped at {stop}"
        said.append(
            f"{name}: training ends at {logged[-1][1]:.2f}, validation is lowest, {lowest:.2f}, at step "
            f"{step}, ends at {evaluated[-1][1]:.2f}" + (f", {stopped}" if stops else "")
        )
    panels[0][0].set_ylabel("nats per character")
    panels[0][0].legend(frameon=False)
    return CaptionedFigure(figure, "Training and validation loss over the steps", f"{'; '.join(said)}.")


@course_style()
def plot_schedules(
    schedules: Mapping[str, Callable[[float], float]], xlabel: str = "share of the budget"
) -> CaptionedFigure:
    """Plot learning rates as shares of their peaks, side by side.

    Args:
        schedules: by name, functions of the share of the budget used so far, 0 … 1.
        xlabel: label of that share.
    """
    shares = np.linspace(0, 1, 401)
    figure, panels = new_figure(2.3 * len(schedules), 2.5, 1, len(schedules), sharey=True, squeeze=False)
    said = []
    for axes, (name, factor) in zip(panels[0], schedules.items(), strict=True):
        factors = [factor(float(share)) for share in shares]
        axes.plot(shares, factors, color=BLUE, linewidth=2)
        axes.set(title=name, ylim=(0, 1.05), xlim=(-0.02, 1.02))
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        said.append(
            f"{name} begins at {factors[0]:.2g}, is {factors[200]:.2g} half-way and {factors[-1]:.2g} at the end"
        )
    panels[0][0].set_ylabel("share of the peak rate")
    figure.supxlabel(xlabel, fontsize=11)
    return CaptionedFigure(figure, f"Charts of the learning rate over the {xlabel}", f"{'; '.join(said)}.")


@course_style()
def plot_plateau(losses: Sequence[float], factors: Sequence[float]) -> CaptionedFigure:
    """Plot losses above and the learning rate after each of them below, and mark where the rate falls.

    Args:
        losses: of the evaluations, in order.
        factors: share of the peak rate after each evaluation.
    """
    places = np.arange(1, len(losses) + 1)
    falls = [place for place in places[1:] if factors[place - 1] < factors[place - 2]]
    figure, (above, below) = new_figure(7.5, 3.8, 2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(places, losses, "o--", color=ORANGE, markersize=5, label="validation loss")
    best = np.minimum.accumulate(losses)
    above.step(places, best, where="post", color=GREY, linewidth=1.2, label="best so far")
    below.step(places, factors, where="post", color=BLUE, linewidth=2)
    for axes in (above, below):
        for place in falls:
            axes.axvline(place, color="black", linestyle=":", linewidth=1.2)
    above.set(ylabel="nats per token", title="A made-up loss, and the rate that waits for it")
    above.legend(frameon=False)
    below.set(xlabel="evaluation; dotted: the rate falls", ylabel="share of\nthe peak", ylim=(0, 1.1), xticks=places)
    when = ", ".join(str(place) for place in falls) or "none"
    return CaptionedFigure(
        figure,
        f"Validation loss over {len(losses)} evaluations, and below it the learning rate",
        f"the loss goes from {losses[0]:.2f} to {losses[-1]:.2f}; the rate falls from {factors[0]:g} to "
        f"{factors[-1]:g} of its peak at evaluations {when}.",
    )


@course_style()
def plot_attempt(records: Records, before: Records = (), steps: int = 300) -> CaptionedFigure:
    """Plot training and validation loss of a run, and the validation loss of the run before it.

    Args:
        records: as in `metrics.jsonl`, of a run that may not be finished.
        before: records of the run before, to compare with.
        steps: length of a whole run.
    """
    figure, axes = new_figure(8.0, 3.6)
    curves = (
        (records, "logged", "training", BLUE, "-"),
        (records, "evaluated", "validation", ORANGE, "o--"),
        (before, "evaluated", "validation of the run before", GREY, "s:"),
    )
    said = []
    for run, event, name, color, style in curves:
        if points := loss_points(run, event):
            axes.plot(
                *zip(*points, strict=True), style, color=color, markersize=5, label=f"{name}: {points[-1][1]:.3f}"
            )
            said.append(f"{name} {points[-1][1]:.3f} at step {points[-1][0]}")
    axes.set(xlabel="step", ylabel="nats per character", xlim=(0, steps * 1.02), ylim=(1.8, 5.4))  # room for the legend
    if said:
        axes.legend(frameon=False, loc="upper right")
    story = ", ".join(said) or "nothing learned yet"
    return CaptionedFigure(figure, f"Line chart of the loss over {steps} steps", f"{story}.")
