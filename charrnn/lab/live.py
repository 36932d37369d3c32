"""A plot that grows while a model trains."""

import time
from dataclasses import asdict
from typing import Any

import ipywidgets

from charrnn.lab.figures import plot_losses
from charrnn.training import Evaluated, Event, Finished, Logged, Stepped


class LivePlot:
    """A monitor with a widget: the loss curve, redrawn at most twice a second, and a progress bar.

    Show `view` in a notebook, then give the plot to the training as a monitor.

    Args:
        vocab_size: draws the loss of a model that knows nothing.
        every: seconds between two drawings.

    Attributes:
        view: the widget.
        records: what the run has told so far, for `plot_losses`.
    """

    def __init__(self, vocab_size: int, every: float = 0.5):
        self.records: list[dict[str, Any]] = []
        self._vocab_size = vocab_size
        self._every = every
        self._drawn = 0.0
        self._image = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self._bar = ipywidgets.FloatProgress(min=0, max=1, description="budget", layout={"width": "420px"})
        self.view = ipywidgets.VBox([self._bar, self._image])
        self._draw()

    def __call__(self, event: Event) -> None:
        """Take a number, and draw if it is time."""
        if isinstance(event, Logged | Evaluated):
            self.records.append({"event": type(event).__name__.lower(), **asdict(event)})
        finished = isinstance(event, Finished)
        if finished or time.monotonic() - self._drawn >= self._every:
            self._draw()
            if isinstance(event, Stepped):
                self._bar.value = event.progress
            elif finished:
                self._bar.value = 1.0

    def _draw(self) -> None:
        self._image.value = plot_losses(self.records, self._vocab_size).png()
        self._drawn = time.monotonic()
