"""The widget of notebook 04: gates over a text that the reader types."""

import html
from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np

from charrnn.lab.gates import NAMES, busiest_units, plot_gates, read_gates
from charrnn.sampling import TextGenerator

LONGEST = 80  # characters of a text that the picture has room for
UNITS: dict[str, Callable[[np.ndarray, int], list[int]]] = {
    "vary most": busiest_units,
    "highest mean": lambda values, count: np.argsort(-values.mean(axis=0), kind="stable")[:count].tolist(),
    "lowest mean": lambda values, count: np.argsort(values.mean(axis=0), kind="stable")[:count].tolist(),
}


class GatesPanel:
    """A text, which gate, which units and how many, over the map of that gate.

    Args:
        generator: a GRU or an LSTM, and its tokenizer.
        text: to begin with.

    Attributes:
        view: the widget.
        controls: the input widgets by name.
    """

    def __init__(self, generator: TextGenerator, text: str = "ROMEO:\nBut soft, what light through yonder window"):
        self._generator = generator
        wide = {"style": {"description_width": "6em"}, "layout": {"width": "620px"}}
        names = [name for name in NAMES if name in read_gates(generator, text)]
        self.controls: dict[str, Any] = {
            "text": ipywidgets.Textarea(text, description="text", rows=3, continuous_update=False, **wide),
            "gate": ipywidgets.Dropdown(
                options=[(NAMES[name], name) for name in names],
                value="f" if "f" in names else names[0],
                description="gate",
                **wide,
            ),
            "units": ipywidgets.Dropdown(options=list(UNITS), description="units", **wide),
            "count": ipywidgets.IntSlider(12, min=2, max=40, description="how many", continuous_update=False, **wide),
        }
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
            control.observe(self._draw, names="value")
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.words = ipywidgets.HTML().add_class("t-gates")
        self.view = ipywidgets.VBox([*self.controls.values(), self.image, self.words])
        self._draw()

    def chosen_units(self, values: np.ndarray) -> list[int]:
        """The units of a gate `(T, H)` that the controls ask for."""
        return UNITS[self.controls["units"].value](values, self.controls["count"].value)

    def _draw(self, _: Any = None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        text = values["text"][:LONGEST]
        try:
            gate = read_gates(self._generator, text)[values["gate"]]
        except ValueError as error:
            self.image.layout.display = "none"
            self.words.value = f'<p role="alert"><b>Not drawn:</b> {html.escape(str(error))}</p>'
            return
        picture = plot_gates(text, gate, values["gate"], self.chosen_units(gate))
        self.image.value, self.image.layout.display = picture.png(), None
        cut = f" Only the first {LONGEST} characters are drawn." if len(values["text"]) > LONGEST else ""
        self.words.value = f"<p>{html.escape(picture.alt + cut)}</p>"
