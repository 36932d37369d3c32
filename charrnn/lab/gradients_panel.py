"""A widget: how a gradient's norm depends on the spectral radius."""

from typing import Any

import ipywidgets

from charrnn.lab.figures import Picture
from charrnn.lab.gradients import MATRICES, RECURRENCES, gradient_norms, log_slope, plot_norms, recurrent_matrix


def plot_radius(radius: float, matrix: str, recurrence: str, seed: int) -> Picture:
    """Gradient norm against lag for one random network of 64 units, beside the line of slope ln(radius)."""
    norms = gradient_norms(recurrent_matrix(matrix, 64, radius, seed), 50, recurrence, seed)
    title = f"{matrix}, {recurrence}: slope {log_slope(norms):.3f}"
    return plot_norms({"gradient norm": norms}, title, radius, ylim=(1e-6, 1e5))  # the same for all: slopes compare


class GradientsPanel:
    """Spectral radius, kind of matrix, kind of recurrence and seed, over the picture of gradient norm against lag.

    Attributes:
        view: the widget.
        controls: the input widgets by name.
    """

    def __init__(self) -> None:
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "460px"}}
        sliding = wide | {"continuous_update": False}
        self.controls: dict[str, Any] = {
            "radius": ipywidgets.FloatSlider(
                0.9, min=0.8, max=1.2, step=0.01, description="spectral radius", readout_format=".2f", **sliding
            ),
            "matrix": ipywidgets.Dropdown(options=MATRICES, description="matrix", **wide),
            "recurrence": ipywidgets.Dropdown(options=RECURRENCES, description="recurrence", **wide),
            "seed": ipywidgets.IntSlider(0, min=0, max=20, description="seed", **sliding),
        }
        for name, control in self.controls.items():
            control.add_class(f"t-{name}")
            control.observe(self._draw, names="value")
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.words = ipywidgets.HTML().add_class("t-gradients")
        self.view = ipywidgets.VBox([*self.controls.values(), self.image, self.words])
        self._draw()

    def _draw(self, _: Any = None) -> None:
        picture = plot_radius(**{name: control.value for name, control in self.controls.items()})
        self.image.value = picture.png()
        self.words.value = f"<p>{picture.alt}</p>"
