"""Figures of the course. Each plotting function returns a `CaptionedFigure`.

The colours of Okabe & Ito (2008) are distinct for colour-blind readers, and no information is given by colour alone.
"""

import base64
import contextlib
import html
import io
import struct
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


_DRAWING = threading.RLock()  # all threads share matplotlib's settings


@contextlib.contextmanager
def course_style() -> Iterator[None]:
    """Draw in the style of the course, regardless of the user's style, in one thread at a time.

    Every function that draws is decorated with it, because matplotlib reads its settings for each part of a figure.
    """
    with _DRAWING, style.context("default"):
        yield


class CaptionedFigure:
    """A figure with a short caption and a description in words.

    JupyterLab, Voilà and nbconvert ignore the alt text of an `image/png` output, but keep that of an image in HTML.
    So a notebook shows a figure as HTML.

    Attributes:
        figure: a matplotlib figure.
        caption: the kind of figure and its subject, in a few words without a full stop.
        description: what it shows, in numbers taken from the data.
    """

    @course_style()
    def __init__(self, figure: Figure, caption: str, description: str):
        self.figure, self.caption, self.description = figure, caption, description
        if lacking := make_drawable(figure):
            shown = ", ".join(lacking[:5]) + ", …" * (len(lacking) > 5)
            self.description += f" No installed font has these characters, so they are drawn as escapes: {shown}."

    @property
    def alt(self) -> str:
        """The caption and the description as one text."""
        return f"{self.caption}: {self.description}"

    @course_style()
    def png(self) -> bytes:
        """The figure as a PNG file with at most 256 colours, which takes a third of the bytes and looks the same."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        image = Image.open(drawn).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
        return small.getvalue()

    def to_html(self, folded: bool = True) -> str:
        """Give the figure as HTML: the image with its alt text, the caption, and the description, folded by default.

        The alt text is the caption, because a screen reader cannot pause in an alt text or go back in it. The numbers
        follow as text.
        """
        caption, png = html.escape(self.caption), self.png()
        width, height = struct.unpack(">II", png[16:24])  # reserve the space of the image while it loads
        size = f'width="{width}" height="{height}" style="max-width:100%;height:auto"'
        description = _without_formulas(html.escape(self.description))
        details = f"<details><summary>Description</summary>{description}</details>"
        return (
            '<figure style="margin:0">'
            f'<img alt="{caption}" src="data:image/png;base64,{base64.b64encode(png).decode()}" {size}>'
            f"<figcaption>{_without_formulas(caption)}{details if folded else ''}</figcaption></figure>"
            f"{'' if folded else f'<p>{description}</p>'}"
        )

    def _ipython_display_(self) -> None:
        display({"text/html": self.to_html(), "text/plain": self.alt}, raw=True)


def _without_formulas(text: str) -> str:
    """HTML in which MathJax finds no formula: a formula cannot contain an element."""
    return text.replace("$", "<span>$</span>").replace("\\", "<span>\\</span>")


def new_figure(width: float = 7.0, height: float = 3.2, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Make an empty figure, and its axes: one, or an array of them. It is unknown to pyplot, so it is not shown twice.

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


def save_figure(figure: CaptionedFigure, path: Path) -> None:
    """Write a PNG or SVG file atomically; the ending of `path` decides the format.

    Raises:
        ValueError: another ending.
    """
    match path.suffix.lower():
        case ".png":
            data = figure.png()
        case ".svg":
            data = _svg(figure)
        case _:
            raise ValueError(f"{path}: expected a file that ends in .png or .svg")
    write_atomically(path, data)


def _svg(figure: CaptionedFigure) -> bytes:
    """Encode a figure with its alt text; the same figure gives the same bytes."""
    drawn = io.BytesIO()
    with course_style(), rc_context({"svg.hashsalt": "charrnn"}):
        about = {"Description": figure.alt, "Date": None}
        figure.figure.savefig(drawn, format="svg", bbox_inches="tight", facecolor="white", metadata=about)
    return drawn.getvalue()


LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (GREY, ":", "D"))  # colour, line, marker
