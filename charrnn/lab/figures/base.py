"""Figures of the course. Each function of data returns a `CaptionedFigure`: the figure and its alt text.

Colours are those of Okabe & Ito (2008), which colour-blind readers can tell apart; nothing is told by colour alone.
"""

import contextlib
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from IPython.display import display
from matplotlib import rc_context, style
from matplotlib.figure import Figure
from PIL import Image

from charrnn.atomic import write_atomically
from charrnn.lab.figures.glyphs import make_drawable

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


class CaptionedFigure:
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


def save_figure(picture: CaptionedFigure, path: Path) -> None:
    """Write a PNG or SVG file, as `path` ends, whole or not at all.

    Raises:
        ValueError: it ends in something else.
    """
    match path.suffix.lower():
        case ".png":
            data = picture.png()
        case ".svg":
            data = _svg(picture)
        case _:
            raise ValueError(f"{path}: expected a file that ends in .png or .svg")
    write_atomically(path, data)


def _svg(picture: CaptionedFigure) -> bytes:
    """The same bytes for the same picture, its alt text inside."""
    drawn = io.BytesIO()
    with course_style(), rc_context({"svg.hashsalt": "charrnn"}):
        about = {"Description": picture.alt, "Date": None}
        picture.figure.savefig(drawn, format="svg", bbox_inches="tight", facecolor="white", metadata=about)
    return drawn.getvalue()


LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (GREY, ":", "D"))  # colour, line, marker
