"""A panel for the streams of a text."""

import ipywidgets

from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.corpus import plot_streams, window_table
from charrnn.lab.panels.base import SLIDING, Panel
from charrnn.lab.panels.generation import text_to_html


class StreamsPanel(Panel):
    """Sliders for batch_size, seq_length, window and epoch, over a figure of a text's streams.

    Args:
        text: a short text of at least two characters.
    """

    def __init__(self, text: str):
        self._text = text
        ends = {"batch_size": (4, 1, 8), "seq_length": (10, 1, 24), "window": (1, 0, 12), "epoch": (0, 0, 5)}
        super().__init__(
            {
                name: ipywidgets.IntSlider(value, min=low, max=high, description=name, **SLIDING)
                for name, (value, low, high) in ends.items()
            }
        )

    def make_figure(self, **values: int) -> CaptionedFigure:
        """Draw the streams, and mark the window."""
        return plot_streams(self._text, **values)

    def make_words(self, **values: int) -> str:
        """List the rows of the window."""
        return text_to_html(window_table(self._text, **values))
