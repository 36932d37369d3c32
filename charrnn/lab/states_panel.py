"""A widget: a network reads what you type, over the picture of its states."""

import html
from typing import Any

import ipywidgets
import numpy as np
import torch
from torch import Tensor

from charrnn.lab.states import plot_reading, principal_components, read_states, word_places
from charrnn.sampling import TextGenerator


class StatesPanel:
    """A network that reads what you type, step by step, over the picture of its states.

    Args:
        generator: the network and its tokenizer, of one token per character.
        text: what the background shows; long enough for the plane to mean something.

    Attributes:
        view: the widget.
        controls: the input widgets by name.
        components: the axes of the plane.
    """

    def __init__(self, generator: TextGenerator, text: str):
        self._generator = generator
        states = self._read(text)
        self.components = principal_components(states)
        self._points, self._groups = self.components.project(states), word_places(text)
        wide = {"style": {"description_width": "6em"}, "layout": {"width": "460px"}, "continuous_update": False}
        self.controls: dict[str, Any] = {
            "text": ipywidgets.Text("the king and the queen", description="text", **wide),
            "step": ipywidgets.IntSlider(8, min=1, max=22, description="step", **wide),
        }
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.words = ipywidgets.HTML().add_class("t-states")
        self.view = ipywidgets.VBox([*self.controls.values(), self.image, self.words])
        self.controls["text"].observe(self._retype, names="value")
        self.controls["step"].observe(self._draw, names="value")
        self._draw()

    def _read(self, text: str) -> Tensor:
        tokens = torch.as_tensor(self._generator.tokenizer.encode(text).astype(np.int64))
        return read_states(self._generator.model, tokens[None])[0]  # (T, H)

    def _retype(self, _: Any) -> None:
        """Read the new text to its end; the slider is as long as the text, which draws it if that moves the slider."""
        slider, end = self.controls["step"], max(len(self.controls["text"].value), 1)
        before = slider.value
        slider.max = end
        slider.value = end
        if slider.value == before:
            self._draw()

    def _draw(self, _: Any = None) -> None:
        text, step = self.controls["text"].value, self.controls["step"].value
        try:
            if not text:
                raise ValueError("type a text for it to read")
            states = self._read(text)
        except ValueError as error:  # a character that the network has never seen, or none at all
            self.words.value = f'<p role="alert">{html.escape(str(error))}</p>'
            return
        picture = plot_reading(text, states, self.components, self._points, self._groups, step)
        self.image.value = picture.png()
        self.words.value = f"<p>{html.escape(picture.alt)}</p>"
