"""A panel that shows the next-character distribution."""

import ipywidgets

from charrnn.generation.generator import TextGenerator
from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.sampling import plot_distribution
from charrnn.lab.panels.base import SLIDING, Panel
from charrnn.lab.panels.generation import settings_of


class DistributionPanel(Panel):
    """A prompt and the settings that reshape the distribution after it, over its picture.

    Args:
        generator: its model reads.
        prompt: what stands in the box at first.
        count: tokens to show, at most.
    """

    def __init__(self, generator: TextGenerator, prompt: str = "My lord, I ", count: int = 16):
        self._generator, self._count = generator, count
        wide = SLIDING | {"style": {"description_width": "9.5em"}}
        sliders = {
            "temperature": ipywidgets.FloatSlider(1.0, min=0, max=3, step=0.05, description="temperature", **wide),
            "top_k": ipywidgets.IntSlider(
                0, min=0, max=generator.tokenizer.vocab_size, description="top-k (0: off)", **wide
            ),
            "top_p": ipywidgets.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="top-p (1: off)", **wide),
            "min_p": ipywidgets.FloatSlider(0.0, min=0, max=1, step=0.01, description="min-p (0: off)", **wide),
            "typical_p": ipywidgets.FloatSlider(
                1.0, min=0.05, max=1, step=0.05, description="typical-p (1: off)", **wide
            ),
        }
        box = ipywidgets.Textarea(prompt, description="prompt", rows=2, **wide)
        super().__init__({"prompt": box} | sliders)

    def make_figure(
        self, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
    ) -> CaptionedFigure:
        """The distribution after `prompt`; a value that means off is not passed on."""
        filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
        return plot_distribution(self._generator, prompt, self._count, temperature, **settings_of(filters))
