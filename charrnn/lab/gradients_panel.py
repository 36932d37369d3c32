"""A widget: how a gradient's norm depends on the spectral radius."""

import ipywidgets

from charrnn.lab.figures import Picture
from charrnn.lab.gradients import MATRICES, RECURRENCES, gradient_norms, log_slope, plot_norms, recurrent_matrix
from charrnn.lab.panel import SLIDING, WIDE, Panel


def plot_radius(radius: float, matrix: str, recurrence: str, seed: int) -> Picture:
    """Gradient norm against lag for one random network of 64 units, beside the line of slope ln(radius)."""
    norms = gradient_norms(recurrent_matrix(matrix, 64, radius, seed), 50, recurrence, seed)
    title = f"{matrix}, {recurrence}: slope {log_slope(norms):.3f}"
    return plot_norms({"gradient norm": norms}, title, radius, ylim=(1e-6, 1e5))  # the same for all: slopes compare


class GradientsPanel(Panel):
    """Spectral radius, kind of matrix, kind of recurrence and seed, over the picture of gradient norm against lag."""

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

    def picture(self, radius: float, matrix: str, recurrence: str, seed: int) -> Picture:
        """The norms of one network."""
        return plot_radius(radius, matrix, recurrence, seed)
