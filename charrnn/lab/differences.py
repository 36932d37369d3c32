"""Paired differences with their intervals, a row for each pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.lab.figures import BLUE, GREY, Picture, course_style, new_figure


@course_style()
def plot_differences(groups: Mapping[str, Sequence[Mapping[str, Any]]], level: float = 0.05) -> Picture:
    """By how much the better of two is better, and how sure that is; a chart for each group of pairs.

    Args:
        groups: by title, rows with `better`, `worse`, `difference`, and `low`, `high` (95%) and `p_holm`, which may be
            None.
        level: a corrected p-value below it counts as a difference shown: a filled point.
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
    figure.supxlabel("nats, with 95% intervals; filled: shown, hollow: may be chance", fontsize=11)
    return Picture(figure, f"Differences of the validation loss; {'; '.join(said)}.")


def _draw_rows(axes: Any, rows: Sequence[Mapping[str, Any]], level: float) -> None:
    """The largest difference at the top."""
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
