"""The log of a speedrun drawn: what was changed, what was expected, what came, what was kept."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.lab.figures import BLUE, GREEN, GREY, ORANGE, Picture, course_style, new_figure


def best_before(log: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """For each trial the loss of what had been kept before it; None before anything was."""
    best, before = None, []
    for trial in log:
        before.append(best)
        if trial["kept"]:
            best = trial["measured"]
    return before


@course_style()
def plot_speedrun(log: Sequence[Mapping[str, Any]], title: str) -> Picture:
    """A bar for each trial, from the loss of what was kept before it to its own, in the order they were made.

    The bar of what was kept is filled, that of what was dropped is not.

    Args:
        log: of each trial `change`, in words; `predicted`, nats per token, or None; `measured`; and whether it was
            `kept`. At least one was.
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
    alt = (
        f"{len(log)} trials from the top down, {len(kept)} of them kept: from {kept[0]['measured']:.3f} "
        f"({kept[0]['change']}) to {kept[-1]['measured']:.3f} ({kept[-1]['change']})."
    )
    return Picture(figure, alt)


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
    """The best so far, as a line from the top down."""
    kept = [(trial["measured"], place) for trial, place in zip(log, places, strict=True) if trial["kept"]]
    x, y = zip(*kept, strict=True)
    axes.step([*x, x[-1]], [*y, places[-1] + 0.5], where="pre", color=GREY, linewidth=1, zorder=0)


def _legend(figure: Any, axes: Any) -> None:
    axes.plot([], [], "o", color=BLUE, label="measured, kept")
    axes.plot([], [], "o", color=BLUE, markerfacecolor="white", label="measured, dropped")
    axes.plot([], [], "|", color="black", markersize=13, markeredgewidth=2, label="predicted")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
