"""Figures of surprisal: a heat map of a text and a bar chart."""

import html
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from charrnn.data.characters import visible
from charrnn.lab.figures.base import ORANGE, CaptionedFigure, course_style, new_figure

GROUND = LinearSegmentedColormap.from_list("surprisal", ["white", ORANGE])  # black text has a contrast of at least 5

STRONGEST = 8.0  # bits at which the colour is full

COLUMNS = 40  # characters in a row of the figure


def label(bits: float) -> str:
    """Format a surprisal in at most three characters."""
    return f"{bits:.1f}" if bits < 9.95 else f"{bits:.0f}"


def summary(tokens: Sequence[str], bits: ArrayLike) -> str:
    """Describe the total and mean surprisal of a text, and where it is greatest."""
    bits = np.asarray(bits)
    length, most = len("".join(tokens)), int(bits.argmax())
    characters = f"{length:,} character{'s' * (length != 1)}"
    return (
        f"{characters} with {bits.sum():,.1f} bits in all, {bits.sum() / max(length, 1):.2f} bits per character; "
        f"most surprising is {tokens[most]!r} at place {most + 1:,} with {label(bits[most])} bits."
    )


# ------------------------------------------------------------------------------------------------------------ a page


def surprisal_to_html(tokens: Sequence[str], bits: ArrayLike) -> str:
    """Show a text, each token shaded by its surprisal and with its bits below it.

    Args:
        tokens: texts of the T tokens.
        bits: surprisal of each, `(T,)`.

    Returns:
        HTML that begins with the `summary`, which says the same without colours.
    """
    bits = np.asarray(bits).tolist()
    words = []
    for word in _words(tokens):
        cells = "".join(_cell(tokens[place], bits[place]) for place in word)
        words.append(f'<span style="display:flex;flex-wrap:wrap">{cells}</span>')
        if tokens[word[-1]].endswith("\n"):
            words.append('<span style="flex-basis:100%"></span>')  # ends the row
    return (
        f"<p>{html.escape(summary(tokens, bits))}</p>"
        '<div aria-hidden="true" style="display:flex;flex-wrap:wrap;row-gap:2px;font-family:monospace;color:#000">'
        f"{''.join(words)}</div>"
    )


def _cell(token: str, bits: float) -> str:
    return (
        f'<span style="background:{ground(bits)};min-width:1.9em;padding:1px 2px;text-align:center;line-height:1.25">'
        f'<span style="display:block;font-size:1.15em;white-space:pre">{html.escape(visible(token))}</span>'
        f'<span style="display:block;font-size:.8em">{label(bits)}</span></span>'
    )


def _words(tokens: Sequence[str]) -> Iterator[range]:
    """Find the tokens to keep together in a row: up to the next space or newline."""
    start = 0
    for place, token in enumerate(tokens, 1):
        if token.endswith((" ", "\n")) or place == len(tokens):
            yield range(start, place)
            start = place


def ground(bits: float) -> str:
    """Choose the colour behind a token with this surprisal: white for 0 bits, orange from 8."""
    return to_hex(GROUND(min(bits / STRONGEST, 1.0)))


# ---------------------------------------------------------------------------------------------------------- a figure


@course_style()
def plot_surprisal(tokens: Sequence[str], bits: ArrayLike, title: str = "") -> CaptionedFigure:
    """Draw what `surprisal_to_html` shows as a figure.

    Args:
        tokens: texts of the T tokens.
        bits: surprisal of each, `(T,)`.
        title: of the figure; by default the mean bits per character.
    """
    boxes = _places(tokens)
    rows = boxes[-1][0] + 1
    figure, axes = new_figure(9.0, 0.5 + 0.42 * rows)
    for token, value, (row, left, width) in zip(tokens, bits, boxes, strict=True):
        axes.add_patch(Rectangle((left + 0.03, row + 0.04), width - 0.06, 0.92, facecolor=ground(float(value))))
        middle = left + width / 2
        axes.text(middle, row + 0.36, visible(token), ha="center", va="center", family="DejaVu Sans Mono", fontsize=11)
        axes.text(middle, row + 0.78, label(float(value)), ha="center", va="center", fontsize=7)
    length = len("".join(tokens))
    axes.set(xlim=(0, COLUMNS), ylim=(rows, 0), title=title or f"{np.sum(bits) / length:.2f} bits per character")
    axes.axis("off")
    return CaptionedFigure(figure, "A text, each character with its surprisal in bits", summary(tokens, bits))


def _places(tokens: Sequence[str]) -> list[tuple[int, float, float]]:
    """Lay out the tokens' boxes (row, left edge, width); a row ends at a newline or before a word that does not fit."""
    widths = [min(max(1.0, 0.5 + 0.5 * len(token)), COLUMNS) for token in tokens]
    row, left, boxes = 0, 0.0, []
    for word in _words(tokens):
        if left and left + sum(widths[place] for place in word) > COLUMNS:
            row, left = row + 1, 0.0
        for place in word:
            if left + widths[place] > COLUMNS:  # a word that is longer than a row
                row, left = row + 1, 0.0
            boxes.append((row, left, widths[place]))
            left += widths[place]
        if tokens[word[-1]].endswith("\n"):
            row, left = row + 1, 0.0
    return boxes
