"""A panel for the surprisal of a text."""

from typing import Any

import ipywidgets

from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.surprisal import surprisal_to_html
from charrnn.lab.panels.base import WIDE, ControlPanel, alert
from charrnn.lab.probes.surprisal import surprisal, tokens_of


class SurprisalPanel(ControlPanel):
    """A box for a text, and the surprisal of each of its characters.

    Args:
        generator: the network.
        text: the initial text.

    Attributes:
        words: the text with its surprisal, or an error message, as HTML.
    """

    def __init__(self, generator: TextGenerator, text: str = "To be, or not to be: that is the question."):
        self._generator = generator
        self.words = ipywidgets.HTML().add_class("t-surprisal")
        box = ipywidgets.Textarea(text, description="text", rows=3, continuous_update=False, **WIDE)
        super().__init__({"text": box}, self.words)
        self.draw()

    def draw(self, change: Any = None) -> None:
        """Show the surprisal of the current text, or an error message."""
        text = self.controls["text"].value
        try:
            self.words.value = surprisal_to_html(tokens_of(self._generator, text), surprisal(self._generator, text))
        except ValueError as error:  # an unknown character, or an empty text
            self.words.value = alert("Not read:", str(error))
