"""A panel that shows how the norm of a gradient depends on the spectral radius."""

import ipywidgets

from charrnn.lab.figures.base import CaptionedFigure
from charrnn.lab.figures.gradients import plot_radius
from charrnn.lab.panels.base import SLIDING, WIDE, Panel
from charrnn.lab.probes.gradients import MATRICES, RECURRENCES


class GradientsPanel(Panel):
    """Controls for spectral radius, matrix, recurrence and seed, over a figure of the gradient norm at each lag."""

    def __init__(self) -> None:
        super().__init__(
            {
                "radius": ipywidgets.FloatSlider(
                    0.9, min=0.8, max=1.2, step=0.01, description="spectral radius", readout_format=".2f", **SLIDING
                ),
                "matrix": ipywidgets.Dropdown(options=MATRICES, description="matrix", **WIDE),
                "recurrence": ipywidgets.Dropdown(options=RECURRENCES, description="recurrence", **WIDE),
                "seed": ipywidgets.IntSlider(0, min=0, max=20, description="seed", **SLIDING),
            }
        )

    def make_figure(self, radius: float, matrix: str, recurrence: str, seed: int) -> CaptionedFigure:
        """Draw the norms for one network."""
        return plot_radius(radius, matrix, recurrence, seed)
