"""A panel for the distribution of the next character."""

import ipywidgets

from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.sampling import plot_distribution
from charrnn.lab.panels.base import SLIDING, Panel
from charrnn.lab.panels.generation import settings_of, sliders


class DistributionPanel(Panel):
    """Controls for a prompt and the sampling settings, over a figure of the distribution after it.

    Args:
        generator: the network.
        prompt: the initial prompt.
        count: the largest number of tokens to show.
    """

    def __init__(self, generator: TextGenerator, prompt: str = "My lord, I ", count: int = 16):
        self._generator, self._count = generator, count
        wide = SLIDING | {"style": {"description_width": "9.5em"}}
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        settings = sliders(generator.tokenizer.vocab_size, *names, layout=wide)
        settings["temperature"].max, settings["temperature"].value = 3.0, 1.0
        box = ipywidgets.Textarea(prompt, description="prompt", rows=2, **wide)
        super().__init__({"prompt": box} | settings)

    def make_figure(
        self, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
    ) -> CaptionedFigure:
        """Draw the distribution after `prompt`."""
        filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
        return plot_distribution(self._generator, prompt, self._count, temperature, **settings_of(filters))
