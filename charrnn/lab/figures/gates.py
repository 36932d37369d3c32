"""Figures of gates."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from charrnn.data.characters import spoken, visible
from charrnn.lab.figures.base import BLUE, GREY, ORANGE, CaptionedFigure, course_style, new_figure
from charrnn.lab.probes.gates import NAMES, OPEN, SHUT, SIGMOIDS, saturation

SHADES = colormaps["cividis"]  # lightness grows with the value, so it reads the same without colour


@course_style()
def plot_gates(text: str, values: np.ndarray, name: str, units: Sequence[int]) -> CaptionedFigure:
    """Draw a heat map of some units of a gate over a text: a column for each character, a row for each unit.

    Args:
        text: the text read, up to about 100 characters.
        values: of the gate after each character, `(T, H)`.
        name: of the gate, a key of `NAMES`.
        units: the rows, from the top.

    Raises:
        ValueError: text and values differ in length.
    """
    if len(text) != len(values):
        raise ValueError(f"expected a row of values for each of {len(text)} characters, got {len(values)}")
    low, high = _limits(name, values[:, list(units)])
    figure, axes = new_figure(10.0, 1.1 + 0.21 * len(units))
    image = axes.imshow(
        values[:, list(units)].T, cmap=SHADES, vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    axes.set_xticks(range(len(text)), [visible(character) for character in text], family="DejaVu Sans Mono", fontsize=9)
    axes.set_yticks(range(len(units)), [str(unit) for unit in units], fontsize=8)
    axes.tick_params(length=0)
    axes.set(ylabel="unit", title=f"The {NAMES[name]} after each character")
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    if name in SIGMOIDS:
        bar.set_ticks([0, 0.5, 1], labels=["0 shut", "0.5", "1 open"])
    shown = values[:, list(units)]
    return CaptionedFigure(
        figure,
        f"Heat map of the {NAMES[name]} of {len(units)} units over {len(text)} characters, light for high",
        f"mean {shown.mean():.2f}, lowest {shown.min():.2f}, highest {shown.max():.2f}; unit {units[0]} is lowest "
        f"after {spoken(text[int(shown[:, 0].argmin())])} and highest after {spoken(text[int(shown[:, 0].argmax())])}.",
    )


def _limits(name: str, values: np.ndarray) -> tuple[float, float]:
    """Choose the ends of the colour scale: the range of the gate's function, or for a cell the values it reaches."""
    if name == "c":
        return -float(np.abs(values).max()), float(np.abs(values).max())
    return (0.0, 1.0) if name in SIGMOIDS else (-1.0, 1.0)


@course_style()
def plot_unit(text: str, values: np.ndarray, title: str) -> CaptionedFigure:
    """Draw a text, each character shaded by the value of one unit after reading it.

    Args:
        text: the text read, a few lines.
        values: of the unit, `(T,)`.
        title: name of the unit.
    """
    lines = text.removesuffix("\n").split("\n")
    low, high = float(values.min()), float(values.max())
    shades = (values - low) / max(high - low, 1e-9)
    figure, axes = new_figure(10.0, 0.7 + 0.3 * len(lines))
    style = {"ha": "center", "va": "center", "family": "DejaVu Sans Mono", "fontsize": 10, "in_layout": False}
    row = column = 0
    for character, shade in zip(text, shades, strict=True):
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=SHADES(shade), linewidth=0))
        axes.text(column + 0.5, row + 0.5, visible(character), color="white" if shade < 0.5 else "black", **style)
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    axes.set_xlim(0, max(60, *(len(line) + 1 for line in lines)))
    axes.set_ylim(len(lines), 0)
    axes.set_axis_off()
    axes.set_title(f"{title}: dark {low:.2g}, light {high:.2g}", fontsize=11, loc="left")
    return CaptionedFigure(
        figure,
        f"{len(lines)} lines of text, each character shaded by {title}",
        f"from {low:.2f} after {spoken(text[int(values.argmin())])} to {high:.2f} after "
        f"{spoken(text[int(values.argmax())])}.",
    )


@course_style()
def plot_saturation(activations: Mapping[str, np.ndarray]) -> CaptionedFigure:
    """Plot how often each unit of a gate is open over how often it is shut, a chart for each gate.

    A unit near the origin never saturates, and a unit near the end of an axis always does. On the slanted line a unit
    is binary.

    Args:
        activations: gates with a sigmoid, `(..., H)` each, by name.
    """
    first, axes = new_figure(3.3 * len(activations), 3.6)
    axes.remove()
    panels = first.subplots(1, len(activations), sharex=True, sharey=True, squeeze=False)[0]
    said = []
    for panel, (name, values) in zip(panels, activations.items(), strict=True):
        shut, opened = saturation(values)
        panel.plot([0, 1], [1, 0], ":", color=GREY)
        panel.plot(shut, opened, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
        panel.plot(shut.mean(), opened.mean(), "P", color=ORANGE, markersize=11, markeredgecolor="white")
        panel.set(title=NAMES[name], xlabel=f"share of time below {SHUT}", aspect="equal")
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        panel.spines[["top", "right"]].set_visible(False)
        said.append(f"{NAMES[name]}: shut {shut.mean():.0%} and open {opened.mean():.0%} of the time")
    panels[0].set_ylabel(f"share of time above {OPEN}")
    caption = (
        f"Scatter plots of how often {len(shut)} units are open and shut, one for each gate; a cross marks the mean"
    )
    return CaptionedFigure(first, caption, f"{'; '.join(said)}.")


@course_style()
def plot_by_position(positions: np.ndarray, values: np.ndarray, title: str, longest: int = 50) -> CaptionedFigure:
    """Plot the mean of one unit over the position in the line, with a band around the middle 80% of its values.

    Args:
        positions: from `line_positions`, any shape; NaN is ignored.
        values: of the unit, the same shape.
        title: of the figure.
        longest: the last position to draw.
    """
    places = [place for place in range(longest + 1) if (positions == place).sum() > 1]
    groups = [values[positions == place] for place in places]
    means = [float(group.mean()) for group in groups]
    low, high = ([float(np.quantile(group, q)) for group in groups] for q in (0.1, 0.9))
    figure, axes = new_figure()
    axes.fill_between(places, low, high, color=BLUE, alpha=0.2, linewidth=0, label="8 of 10 values")
    axes.plot(places, means, "o-", color=BLUE, markersize=3.5, label="mean")
    axes.set(xlabel="characters since the last newline", ylabel="value", title=title)
    axes.legend(frameon=False)
    return CaptionedFigure(
        figure,
        "Line chart of the mean value by position in the line",
        f"{means[0]:.2f} at {places[0]}, {means[len(means) // 2]:.2f} at {places[len(means) // 2]}, {means[-1]:.2f} at "
        f"{places[-1]}.",
    )
