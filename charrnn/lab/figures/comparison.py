"""Figures that compare runs."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from charrnn.lab.figures.base import BLUE, GREEN, GREY, ORANGE, CaptionedFigure, course_style, new_figure


@course_style()
def plot_ablation(losses: Mapping[str, Sequence[float]]) -> CaptionedFigure:
    """Draw a row for each recipe, from the top down: a point for each seed and a bar at their mean.

    Args:
        losses: final validation losses by recipe, nats per token, one for each seed.
    """
    figure, axes = new_figure(8.0, 0.9 + 0.42 * len(losses))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    for row, (name, values) in enumerate(losses.items()):
        axes.plot([means[name]] * 2, [row - 0.3, row + 0.3], color=BLUE, linewidth=3)
        if len(values) > 1:
            axes.plot(values, [row] * len(values), "o", color=GREY, markersize=6, markerfacecolor="none")
        axes.annotate(f"{means[name]:.3f}", (max(values), row), (9, 0), textcoords="offset points", va="center")
    low, high = min(map(min, losses.values())), max(map(max, losses.values()))
    axes.set_yticks(range(len(losses)), list(losses))
    axes.invert_yaxis()
    axes.set(xlabel="validation loss, nats per character", xlim=(low - 0.03, high + 0.12 * (high - low) + 0.03))
    axes.set_title(
        "One thing added at a time" + (", a circle for each seed" if len(next(iter(losses.values()))) > 1 else "")
    )
    said = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return CaptionedFigure(figure, "Validation loss by recipe, from the first to the last", f"{said}.")


@course_style()
def plot_differences(groups: Mapping[str, Sequence[Mapping[str, Any]]], level: float = 0.05) -> CaptionedFigure:
    """Draw the differences between pairs of losses with their uncertainty, a chart for each group of pairs.

    Args:
        groups: by title, rows with `better`, `worse`, `difference`, and `low`, `high` (95%) and `p_holm`, which may be
            None.
        level: a corrected p-value below it is significant and gets a filled point.
    """
    tallest = max(map(len, groups.values()))
    figure, panels = new_figure(5.2 * len(groups), 1.1 + 0.36 * tallest, 1, len(groups), squeeze=False)
    said = []
    for axes, (title, pairs) in zip(panels[0], groups.items(), strict=True):
        rows = sorted(pairs, key=lambda pair: -pair["difference"])
        _draw_rows(axes, rows, level)
        axes.set(title=title)
        told = (f"{pair['better']} below {pair['worse']} by {pair['difference']:.3f}{_range(pair)}" for pair in rows)
        said.append(f"{title}: {', '.join(told)}")
    figure.supxlabel("nats, with 95% intervals; filled: significant, hollow: may be chance", fontsize=11)
    return CaptionedFigure(figure, "Differences between validation losses", f"{'; '.join(said)}.")


def _draw_rows(axes: Any, rows: Sequence[Mapping[str, Any]], level: float) -> None:
    """Draw the pairs of one group, the largest difference at the top."""
    axes.axvline(0, color=GREY, linewidth=1)
    for place, pair in enumerate(rows):
        shown = pair["p_holm"] is not None and pair["p_holm"] < level
        if pair["low"] is not None:
            axes.plot([pair["low"], pair["high"]], [place, place], color=BLUE, linewidth=2)
        axes.plot(pair["difference"], place, "o", color=BLUE, markersize=8, markerfacecolor=BLUE if shown else "white")
    axes.set_yticks(range(len(rows)), [f"{pair['better']} below {pair['worse']}" for pair in rows], fontsize=10)
    axes.invert_yaxis()


def _range(pair: Mapping[str, Any]) -> str:
    return "" if pair["low"] is None else f" ({pair['low']:.3f} to {pair['high']:.3f})"


def best_before(log: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Find for each trial the loss of the last trial kept before it; None before the first."""
    best, before = None, []
    for trial in log:
        before.append(best)
        if trial["kept"]:
            best = trial["measured"]
    return before


@course_style()
def plot_speedrun(log: Sequence[Mapping[str, Any]], title: str) -> CaptionedFigure:
    """Draw a bar for each trial, in order, from the loss of the last trial kept before it to its own.

    The bars of kept trials are filled, those of dropped ones are not.

    Args:
        log: for each trial `change`, in words; `predicted`, nats per token, or None; `measured`; and whether it was
            `kept`. At least one was kept.
        title: stands above.
    """
    names = [textwrap.fill(trial["change"], 52) for trial in log]
    lines = sum(1 + name.count("\n") for name in names)
    figure, axes = new_figure(8.0, 1.0 + 0.16 * lines + 0.09 * len(log))
    place, places = 0.0, []
    for name, trial, before in zip(names, log, best_before(log), strict=True):
        height = 1 + 0.6 * name.count("\n")
        place += height / 2
        _draw_trial(axes, place, trial, before)
        places.append(place)
        place += height / 2
    _draw_path(axes, places, log)
    axes.set_yticks(places, names, fontsize=8)
    losses = [loss for trial in log for loss in (trial["measured"], trial["predicted"]) if loss is not None]
    room = 0.04 * (max(losses) - min(losses)) + 0.005
    axes.set(
        xlim=(min(losses) - room, max(losses) + 2.5 * room),
        ylim=(place, 0),
        xlabel="validation loss, nats per character",
        title=title,
    )
    _legend(figure, axes)
    kept = [trial for trial in log if trial["kept"]]
    return CaptionedFigure(
        figure,
        f"{len(log)} trials from the top down, {len(kept)} of them kept",
        f"from {kept[0]['measured']:.3f} ({kept[0]['change']}) to {kept[-1]['measured']:.3f} ({kept[-1]['change']}).",
    )


def _draw_trial(axes: Any, place: float, trial: Mapping[str, Any], before: float | None) -> None:
    measured, kept = trial["measured"], trial["kept"]
    if before is not None:
        color, inside = (GREEN, GREEN + "60") if kept else (ORANGE, "none")
        axes.barh(place, measured - before, 0.62, before, facecolor=inside, edgecolor=color, linewidth=1.2)
    axes.plot(measured, place, "o", color=BLUE, markersize=6, markerfacecolor=BLUE if kept else "white")
    if trial["predicted"] is not None:
        axes.plot(trial["predicted"], place, "|", color="black", markersize=11, markeredgewidth=2)
    right = max(measured, before or measured, trial["predicted"] or measured)
    axes.annotate(f"{measured:.3f}", (right, place), (7, 0), textcoords="offset points", va="center", fontsize=8)


def _draw_path(axes: Any, places: Sequence[float], log: Sequence[Mapping[str, Any]]) -> None:
    """Draw the best loss so far as a line from the top down."""
    kept = [(trial["measured"], place) for trial, place in zip(log, places, strict=True) if trial["kept"]]
    x, y = zip(*kept, strict=True)
    axes.step([*x, x[-1]], [*y, places[-1] + 0.5], where="pre", color=GREY, linewidth=1, zorder=0)


def _legend(figure: Any, axes: Any) -> None:
    axes.plot([], [], "o", color=BLUE, label="measured, kept")
    axes.plot([], [], "o", color=BLUE, markerfacecolor="white", label="measured, dropped")
    axes.plot([], [], "|", color="black", markersize=13, markeredgewidth=2, label="predicted")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
