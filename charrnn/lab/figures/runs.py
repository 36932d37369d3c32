"""Figures of training runs, from their records: one run in detail, several compared, and a learning-rate test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator

from charrnn.lab.figures.base import BLUE, GREY, LOOKS, ORANGE, CaptionedFigure, course_style, new_figure
from charrnn.lab.figures.curves import Records, draw_losses
from charrnn.training.callbacks import read_metrics


def load_runs(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Load the records of each run by its name: its directory, or the whole path if two directories have the same name.

    A run that is not finished gives the records it has written so far.

    Raises:
        ValueError: there is no run, or it has not written a loss yet.
    """
    short = [path.resolve().name for path in paths]
    runs = {}
    for path, name in zip(paths, short, strict=True):
        if not (path / "metrics.jsonl").is_file():
            raise ValueError(f"{str(path)!r}: expected the directory of a run, got no metrics.jsonl in it")
        records = [record for record in read_metrics(path) if record["event"] in ("logged", "evaluated")]
        if not records:
            raise ValueError(
                f"{path}: expected numbers to draw, got none in metrics.jsonl; has it reported a loss yet?"
            )
        name = name if short.count(name) == 1 else str(path)
        runs[name.encode(errors="backslashreplace").decode()] = records  # a figure can show nothing but Unicode
    return runs


# ------------------------------------------------------------------------------------------------------------ one run


@course_style()
def plot_run(records: Records, title: str = "Training") -> CaptionedFigure:
    """Plot losses with the best one marked, learning rate, and gradient norm before clipping, over the steps.

    Args:
        records: of one run, as in `metrics.jsonl`; at least one.
        title: of the figure.
    """
    logged = [record for record in records if record["event"] == "logged"]
    evaluated = [record for record in records if record["event"] == "evaluated"]
    figure, (losses, rate, norm) = new_figure(8.0, 6.6, 3, 1, sharex=True, height_ratios=[3, 1, 1])
    said = draw_losses(losses, records)
    said += _mark_best(losses, evaluated)
    losses.set(ylabel="nats per token", title=title)
    losses.legend(frameon=False, loc="upper right")
    said += _draw_values(rate, logged, "learning_rate", "learning rate")
    said += _draw_values(norm, logged, "grad_norm", "gradient norm", logarithmic=True)
    norm.set(xlabel="step", xlim=(0, None))
    norm.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    steps = max(record["step"] for record in records)
    return CaptionedFigure(figure, f"Three line charts over {steps:,} steps", f"{'; '.join(said)}.")


def _mark_best(axes: Any, evaluated: Records) -> list[str]:
    """Draw a star at the lowest validation loss, and describe it."""
    if not evaluated:
        return []
    best = min(evaluated, key=lambda record: record["loss"])
    said = f"best {best['loss']:.4f} at step {best['step']:,}"
    axes.plot(best["step"], best["loss"], "*", color=ORANGE, markersize=14, markeredgecolor="black", label=said)
    return [said]


def _draw_values(axes: Any, logged: Records, key: str, label: str, logarithmic: bool = False) -> list[str]:
    """Draw a curve of a logged value, and describe it."""
    points = [(record["step"], record[key]) for record in logged if record[key] > 0 or not logarithmic]
    axes.set_ylabel(label)
    if not points:
        return [f"no {label}"]
    x, y = zip(*points, strict=True)
    axes.plot(x, y, "-" if len(x) > 1 else "o", color=BLUE, markersize=4)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))  # two of them in any range worth drawing
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_title("before clipping, logarithmic", fontsize=9, color=GREY, loc="left")
        return [f"{label} before clipping between {min(y):.3g} and {max(y):.3g}, {y[-1]:.3g} at the end"]
    axes.set_ylim(0, None)
    return [f"{label} at most {max(y):.3g}, {y[-1]:.3g} at the end"]


# ------------------------------------------------------------------------------------------------------- several runs


@course_style()
def plot_runs(runs: Mapping[str, Records]) -> CaptionedFigure:
    """Plot the validation loss of several runs, over seconds and over steps.

    Args:
        runs: the records of each run by its name; the description names runs without a validation loss.

    Raises:
        ValueError: there are more than four runs, or no run was evaluated.
    """
    if len(runs) > len(LOOKS):
        raise ValueError(f"expected at most {len(LOOKS)} runs to compare in one figure, got {len(runs)}")
    curves = {name: [record for record in records if record["event"] == "evaluated"] for name, records in runs.items()}
    if not any(curves.values()):
        raise ValueError(f"{', '.join(runs)}: expected a validation loss to compare, got none yet")
    figure, panels = new_figure(10.0, 4.0, 1, 2, sharey=True)
    for axes, over in zip(panels, ("seconds", "step"), strict=True):
        for (name, curve), (color, line, marker) in zip(curves.items(), LOOKS, strict=False):
            every = max(1, len(curve) // 10)
            look = {"linestyle": line, "marker": marker, "markevery": every, "color": color, "markersize": 5}
            axes.plot([record[over] for record in curve], [record["loss"] for record in curve], label=name, **look)
        axes.set(xlabel=over, xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.4g}" if x < 1000 else f"{x:,.0f}")
    panels[0].set(ylabel="validation loss, nats per token")
    panels[1].legend(frameon=False)
    figure.suptitle("At equal time, and at equal steps", fontsize=12)
    said = "; ".join(_best(name, curve) for name, curve in curves.items())
    return CaptionedFigure(figure, "Two line charts of validation loss, over seconds and over steps", f"{said}.")


def _best(name: str, curve: Records) -> str:
    if not curve:
        return f"{name} was never evaluated"
    best = min(curve, key=lambda record: record["loss"])
    return f"{name} has its best, {best['loss']:.4f}, after {best['seconds']:,.3g} s and {best['step']:,} steps"


# -------------------------------------------------------------------------------------------------- learning-rate test


@course_style()
def plot_learning_rate(
    rates: Sequence[float],
    losses: Sequence[float],
    suggested: float | None = None,
    smoothed: Sequence[float] | None = None,
) -> CaptionedFigure:
    """Plot the loss over a learning rate that grows step by step (Smith, 2015, arXiv:1506.01186).

    Args:
        rates: learning rates, growing.
        losses: the loss at each rate, nats per token; all finite.
        suggested: the rate to mark.
        smoothed: a smoother curve of the same losses.
    """
    figure, axes = new_figure(7.0, 3.6)
    axes.plot(rates, losses, "-", color=BLUE, linewidth=1, alpha=1 if smoothed is None else 0.5, label="loss")
    if smoothed is not None:
        axes.plot(rates, smoothed, "--", color=ORANGE, linewidth=2, label="smoothed")
    lowest, where = min(zip(losses, rates, strict=True))
    said = f"{losses[0]:.2f} at {rates[0]:.2g}, lowest {lowest:.2f} at {where:.2g}"
    if suggested is not None:
        axes.axvline(suggested, color="black", linestyle=":", label=f"steepest fall: {suggested:.2g}")
        said += f"; it falls most steeply at {suggested:.2g}"
    said += f"; it ends with {losses[-1]:.2f} at {rates[-1]:.2g}."
    top = losses[0] + 0.6 * (losses[0] - lowest) if losses[0] > lowest else losses[0] + 1
    axes.set(xscale="log", xlabel="learning rate", ylabel="nats per token", title="Which learning rate?")
    axes.set_ylim(lowest - 0.1 * (top - lowest), top)  # cuts off the part where it diverged
    axes.legend(frameon=False, loc="lower left")
    return CaptionedFigure(figure, "Line chart of the loss over the learning rate", said)
