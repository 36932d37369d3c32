"""A panel for the states of a network while it reads what the user types."""

from typing import Any

import ipywidgets
import numpy as np
import torch
from torch import Tensor

from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.states import plot_reading
from charrnn.lab.panels.base import SLIDING, Panel
from charrnn.lab.probes.states import principal_components, read_states, word_places


class StatesPanel(Panel):
    """Controls for a text and a step, over a figure of the states up to that step.

    Args:
        generator: the network; its tokens are characters.
        text: read for the background and the axes of the plane, so it should be long.

    Attributes:
        components: the axes of the plane.
    """

    def __init__(self, generator: TextGenerator, text: str):
        self._generator = generator
        states = self._read(text)
        self.components = principal_components(states)
        self._points, self._groups = self.components.project(states), word_places(text)
        super().__init__(
            {
                "text": ipywidgets.Text("the king and the queen", description="text", **SLIDING),
                "step": ipywidgets.IntSlider(8, min=1, max=22, description="step", **SLIDING),
            }
        )

    def _read(self, text: str) -> Tensor:
        tokens = torch.as_tensor(self._generator.tokenizer.encode(text).astype(np.int64))
        return read_states(self._generator.model, tokens[None])[0]  # (T, H)

    def make_figure(self, text: str, step: int) -> CaptionedFigure:
        """Draw the states up to `step`, over those of the background."""
        if not text:
            raise ValueError("type a text for the network to read")
        return plot_reading(text, self._read(text), self.components, self._points, self._groups, step)

    def draw(self, change: Any = None) -> None:
        """Draw; after a change of the text, move the slider to its end."""
        slider = self.controls["step"]
        if change is not None and change.owner is self.controls["text"]:
            before, end = slider.value, max(len(change.new), 1)
            slider.max = end
            slider.value = end
            if slider.value != before:
                return  # moving the slider has drawn the figure
        super().draw()
