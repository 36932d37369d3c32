"""A panel for the gates of a network over a text that the reader types."""

from collections.abc import Callable

import ipywidgets
import numpy as np

from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.gates import plot_gates
from charrnn.lab.panels.base import NARROW, WIDE, Panel
from charrnn.lab.probes.gates import NAMES, busiest_units, read_gates

LONGEST = 80  # characters of a text that fit into the figure

UNITS: dict[str, Callable[[np.ndarray, int], list[int]]] = {
    "vary most": busiest_units,
    "highest mean": lambda values, count: np.argsort(-values.mean(axis=0), kind="stable")[:count].tolist(),
    "lowest mean": lambda values, count: np.argsort(values.mean(axis=0), kind="stable")[:count].tolist(),
}


class GatesPanel(Panel):
    """Controls for a text, a gate, and the choice of units, over the heat map of that gate.

    Args:
        generator: a GRU or an LSTM.
        text: the initial text.
    """

    def __init__(self, generator: TextGenerator, text: str = "ROMEO:\nBut soft, what light through yonder window"):
        self._generator = generator
        wide = WIDE | {"layout": {"width": "620px", **NARROW}}
        names = [name for name in NAMES if name in read_gates(generator, text)]
        super().__init__(
            {
                "text": ipywidgets.Textarea(text, description="text", rows=3, continuous_update=False, **wide),
                "gate": ipywidgets.Dropdown(
                    options=[(NAMES[name], name) for name in names],
                    value="f" if "f" in names else names[0],
                    description="gate",
                    **wide,
                ),
                "units": ipywidgets.Dropdown(options=list(UNITS), description="units", **wide),
                "count": ipywidgets.IntSlider(
                    12, min=2, max=40, description="how many", continuous_update=False, **wide
                ),
            }
        )

    def chosen_units(self, values: np.ndarray) -> list[int]:
        """Choose units of a gate `(T, H)` as the controls say."""
        return UNITS[self.controls["units"].value](values, self.controls["count"].value)

    def make_figure(self, text: str, gate: str, units: str, count: int) -> CaptionedFigure:
        """Draw the heat map of one gate over the text."""
        values = read_gates(self._generator, text[:LONGEST])[gate]
        figure = plot_gates(text[:LONGEST], values, gate, UNITS[units](values, count))
        if len(text) > LONGEST:
            figure.description += f" Only the first {LONGEST} characters are drawn."
        return figure
