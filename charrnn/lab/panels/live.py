"""A loss curve that grows while a model trains."""

import time
from typing import Any

import ipywidgets

from charrnn.lab.figures.curves import plot_losses
from charrnn.training.events import Evaluated, Event, Finished, Logged, Stepped, to_record


class LivePlot:
    """A callback with a widget: a loss curve that is redrawn as it grows, and a progress bar.

    Drawing takes time from training, so it gets at most a tenth of the time.

    Show `view` in a notebook, then pass the plot to the training as a callback.

    Args:
        vocab_size: V, for a line at the loss of a model that knows nothing.
        every: the minimum number of seconds between two drawings; 0 draws at every record.

    Attributes:
        view: the widget.
        records: of the run so far, for `plot_losses`.
    """

    def __init__(self, vocab_size: int, every: float = 0.5):
        self.records: list[dict[str, Any]] = []
        self._vocab_size = vocab_size
        self._every = every
        self._image = ipywidgets.HTML(layout={"max_width": "100%"})
        self._bar = ipywidgets.FloatProgress(min=0, max=1, description="budget", layout={"width": "420px"})
        self.view = ipywidgets.VBox([self._bar, self._image])
        self._draw()

    def __call__(self, event: Event) -> None:
        """Take an event, and draw if it is time."""
        if isinstance(event, Logged | Evaluated):
            self.records.append(to_record(event))
            if time.monotonic() >= self._next:
                self._draw()
        elif isinstance(event, Stepped) and event.progress - self._bar.value >= 0.01:
            self._bar.value = event.progress
        elif isinstance(event, Finished):
            self._bar.value = 1.0
            self._draw()

    def _draw(self) -> None:
        begin = time.monotonic()
        self._image.value = plot_losses(self.records, self._vocab_size).to_html(folded=False)
        end = time.monotonic()
        self._next = end + (max(self._every, 9 * (end - begin)) if self._every else 0)
