"""Figures of the course. Each is a pure function of its data and gives a `Picture`: the figure and its alt text.

Colours are those of Okabe & Ito (2008), which colour-blind readers can tell apart; nothing is told by colour alone.
"""

import contextlib
import io
import math
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from IPython.display import display
from matplotlib import rc_context, style
from matplotlib.figure import Figure
from PIL import Image

from charrnn.characters import spoken
from charrnn.lab.glyphs import make_drawable
from charrnn.sampling import TextGenerator
from charrnn.transforms import softmax

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": False}


_DRAWING = threading.RLock()  # matplotlib's settings are those of all threads


@contextlib.contextmanager
def course_style() -> Iterator[None]:
    """Draw in the style of the course, whatever the user's is, and in one thread at a time.

    It decorates every function that draws: matplotlib reads its settings whenever it makes a part of a figure.
    """
    with _DRAWING, style.context("default"):
        yield


class Picture:
    """A figure and a sentence that says what it shows, for readers who do not see it.

    Attributes:
        figure: a matplotlib figure.
        alt: what it shows, in numbers drawn from the data.
    """

    @course_style()
    def __init__(self, figure: Figure, alt: str):
        self.figure = figure
        lacking = make_drawable(figure)
        shown = ", ".join(lacking[:5]) + ", …" * (len(lacking) > 5)
        self.alt = alt + f" Drawn as escapes, for no installed font has them: {shown}." * bool(lacking)

    @course_style()
    def png(self) -> bytes:
        """The figure as a PNG file of at most 256 colours: a third of the bytes, and nothing that an eye would miss."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        image = Image.open(drawn).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
        return small.getvalue()

    def _ipython_display_(self) -> None:
        """Show the figure, and the sentence below it: JupyterLab has no other place for an alt text."""
        bundle = {"image/png": self.png(), "text/plain": self.alt}
        display(bundle, metadata={"image/png": {"alt": self.alt}}, raw=True)
        display({"text/markdown": f"*{markdown(self.alt)}*", "text/plain": self.alt}, raw=True)


def markdown(text: str) -> str:
    """Text that Markdown shows as it is. MathJax sees no formula either: none contains an HTML element."""
    text = re.sub(
        r"\\(?=[!-/:-@\[-`{-~])|[`*\[]|(?<![^\W_])_|_(?![^\W_])|<(?=[a-zA-Z/!?])|&(?=[#a-zA-Z])", r"\\\g<0>", text
    )
    return text.replace("$", "<span>$</span>")


def new_figure(width: float = 7.0, height: float = 3.2, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """An empty figure outside pyplot, so that nothing is shown twice, and its axes: one, or an array of them.

    Args:
        width: in inches.
        height: in inches.
        rows: of axes.
        columns: of axes.
        **options: as `Figure.subplots` takes them.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


@course_style()
def plot_curve(
    points: Sequence[tuple[float, float]],
    xlabel: str,
    ylabel: str,
    title: str,
    reference: tuple[str, float] | None = None,
    logarithmic: bool = False,
) -> Picture:
    """Points joined by a line, each with its value, over an axis that starts at nothing.

    Args:
        points: (x, y) from left to right.
        xlabel: what x is.
        ylabel: what y is.
        title: stands above.
        reference: a level to compare with, and its name.
        logarithmic: show x by its logarithm, each x named.
    """
    figure, axes = new_figure()
    x, y = zip(*points, strict=True)
    top = max(*y, reference[1] if reference else 0.0)
    axes.plot(x, y, "o-", color=BLUE)
    for place in points:
        axes.annotate(f"{place[1]:.2f}", place, (0, 7), textcoords="offset points", ha="center")
    if reference:
        name, level = reference
        axes.axhline(level, color=ORANGE, linestyle="--", linewidth=1.5)
        axes.annotate(
            f"{name}: {level:.2f}",
            (0.01, level),
            (0, -5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="top",
            color=ORANGE,
        )
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, ylim=(0, top * 1.18))
    beside = f"; {reference[0]} {reference[1]:.2f}" if reference else ""
    alt = f"Line chart of {ylabel} over {xlabel}: {y[0]:.2f} at {x[0]:g} to {y[-1]:.2f} at {x[-1]:g}{beside}."
    return Picture(figure, alt)


def percent(share: float) -> str:
    """A share as a percentage; what would round to nothing or to everything is not called that."""
    return "<1%" if 0 < share < 0.01 else ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def next_character_probabilities(generator: TextGenerator, prompt: str, count: int = 10) -> list[tuple[str, float]]:
    """The `count` likeliest characters after `prompt` and their probabilities, the likeliest first."""
    probabilities = softmax(generator.next_logits(prompt))
    order = np.argsort(-probabilities, kind="stable")[:count]
    likeliest = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return [(generator.tokenizer.decode([token]), probability) for token, probability in likeliest]


@course_style()
def plot_next_character(generator: TextGenerator, prompt: str, count: int = 10) -> Picture:
    """Bars of the likeliest characters after `prompt`."""
    likeliest = next_character_probabilities(generator, prompt, count)
    names = [spoken(character) for character, _ in likeliest]
    values = [probability for _, probability in likeliest]
    figure, axes = new_figure()
    bars = axes.bar(range(len(names)), values, color=BLUE)
    axes.set_xticks(range(len(names)), names)
    axes.bar_label(bars, [percent(value) for value in values], padding=2)
    axes.set(ylabel="probability", ylim=(0, max(values) * 1.15), title=f"What comes after {prompt!r}?")
    alt = (
        f"Bar chart of the next character after {prompt!r}: {names[0]} has probability {percent(values[0])}; "
        f"the {len(names)} likeliest, from {names[0]} to {names[-1]}, hold {percent(sum(values))} together."
    )
    return Picture(figure, alt)


@course_style()
def plot_losses(records: Sequence[dict[str, Any]], vocab_size: int, title: str = "Learning") -> Picture:
    """Training and validation loss over the steps of a run.

    Args:
        records: dictionaries with `event` (`logged` or `evaluated`), `step` and `loss`, as in `metrics.jsonl`.
        vocab_size: draws the loss of a model that knows nothing, ln V.
        title: stands above.
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
    said = []
    for event, label, look in (("logged", "training", "-"), ("evaluated", "validation", "o--")):
        points = [(record["step"], record["loss"]) for record in records if record["event"] == event]
        if points:
            color = BLUE if event == "logged" else ORANGE
            axes.plot(*zip(*points, strict=True), look, color=color, markersize=5, label=label)
            first, last = points[0][1], points[-1][1]
            said.append(
                f"{label} loss goes from {first:.2f} to {last:.2f}" if len(points) > 1 else f"{label} loss {last:.2f}"
            )
    axes.set(xlabel="step", ylabel="nats per character", title=title, xlim=(0, None), ylim=(0, uniform * 1.05))
    if said:
        axes.legend(frameon=False, loc="lower left")
    steps = max((record["step"] for record in records), default=0)
    story = " and ".join(said) or "nothing learned yet"
    alt = f"Line chart over {steps} steps: {story}; knowing nothing costs {uniform:.2f}."
    return Picture(figure, alt)


@course_style()
def plot_real_words(temperatures: Sequence[float], shares: Sequence[float]) -> Picture:
    """Share of a network's words that are words of its corpus, over the temperature it wrote at."""
    figure, axes = new_figure()
    axes.plot(temperatures, shares, "o-", color=BLUE)
    for temperature, share in zip(temperatures, shares, strict=True):
        axes.annotate(f"{share:.0%}", (temperature, share), (0, 7), textcoords="offset points", ha="center")
    axes.set(
        xlabel="temperature",
        ylabel="share of real words",
        ylim=(0, 1.12),
        xticks=temperatures,
        title="How many of its words are real?",
    )
    alt = (
        f"Line chart: {shares[0]:.0%} of the words are Shakespeare's at temperature {temperatures[0]}, "
        f"{shares[-1]:.0%} at {temperatures[-1]}."
    )
    return Picture(figure, alt)
