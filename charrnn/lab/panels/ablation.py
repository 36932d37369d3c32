"""A panel with switches for the parts of a training recipe, a button that trains, and the losses as they come."""

import time
from typing import Any

import ipywidgets

from charrnn.config import TrainingConfig
from charrnn.lab.figures.curves import plot_attempt
from charrnn.lab.panels.base import SLIDING, WIDE, ControlPanel, FigureBox, problem
from charrnn.lab.panels.worker import Worker
from charrnn.lab.probes.small_runs import recorded, small_trainer
from charrnn.training.trainer import Trainer
from charrnn.types import Tokens

OPTIMIZERS = TrainingConfig.model_fields["optimizer"].annotation.__args__

SCHEDULES = ("constant", "cosine", "onecycle")  # the others need more epochs than a run has here


class AblationPanel(ControlPanel):
    """Controls for a training recipe, from optimizer to weight averaging, and a button that trains.

    Training runs in its own thread, so that Stop works. The figure also shows the losses of the run before.

    Args:
        train: token ids `(N,)` to train on.
        val: token ids to evaluate on.
        vocab_size: V.
        steps: length of a run.
        every: the minimum number of seconds between two drawings.

    Attributes:
        image: the losses, as HTML.
        words: an error message, as HTML.
        records: of the latest run so far.
    """

    def __init__(self, train: Tokens, val: Tokens, vocab_size: int, steps: int = 300, every: float = 0.4):
        self._text = train, val, vocab_size
        self._steps, self._every = steps, every
        self._worker = Worker()
        self._trainer: Trainer | None = None
        self.records: list[dict[str, Any]] = []
        self._before: list[dict[str, Any]] = []
        self.start_button = ipywidgets.Button(description="Train", button_style="primary").add_class("t-train")
        self.stop_button = ipywidgets.Button(description="Stop", disabled=True).add_class("t-stop")
        self.start_button.on_click(self.start)
        self.stop_button.on_click(self.stop)
        box = FigureBox()
        self.image, self.words = box.image, box.words
        self._box = box
        super().__init__(_controls(), ipywidgets.HBox([self.start_button, self.stop_button]), box.view)
        self._show()

    def settings(self) -> dict[str, Any]:
        """Give the values of the controls as settings of a run."""
        values = self.values()
        plain_sgd = values["optimizer"] == "sgd"
        return {
            "optimizer": values["optimizer"],
            "learning_rate": values["learning_rate"],
            "muon_learning_rate": values["learning_rate"],
            "beta1": 0.0 if plain_sgd else 0.9,
            "schedule": values["schedule"],
            "warmup_frac": {"constant": 0.0, "cosine": 0.05, "onecycle": 0.3}[values["schedule"]],
            "hold_frac": 0.6 if values["schedule"] == "cosine" else 0.0,
            "output_dropout": values["dropout"],
            "grad_clip": 0.5 if values["clip"] else None,
            "ema_decay": 0.95 if values["ema"] else 0.0,
            "max_steps": self._steps,
            "eval_interval": max(1, self._steps // 12),
        }

    def start(self, _: Any = None) -> None:
        """Train with the values of the controls, unless a run is in progress."""
        if self._worker.running:
            return
        self._before, self.records = self.records or self._before, []
        trainer = self._trainer = small_trainer(*self._text, **self.settings())
        self.start_button.disabled, self.stop_button.disabled = True, False
        self._worker.start(lambda _: self._train(trainer), self._finish)

    def stop(self, _: Any = None) -> None:
        """End the run after the current step."""
        if self._trainer is not None:
            self._trainer.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the run; False if it takes longer than `timeout` seconds."""
        return self._worker.wait(timeout)

    def _train(self, trainer: Trainer) -> None:
        drawn = 0.0
        for record in recorded(trainer):
            self.records.append(record)
            if time.monotonic() - drawn >= self._every:
                self._show()
                drawn = time.monotonic()

    def _finish(self) -> None:
        self._show()
        self.start_button.disabled, self.stop_button.disabled = False, True

    def _show(self) -> None:
        error = self._worker.error
        told = problem("Stopped:", error) if error else ""
        self._box.show(
            lambda: plot_attempt(self.records, self._before, self._steps),
            lambda: told,
        )


def _controls() -> dict[str, Any]:
    return {
        "optimizer": ipywidgets.Dropdown(options=OPTIMIZERS, value="adamw", description="optimizer", **WIDE),
        "learning_rate": ipywidgets.FloatLogSlider(
            0.02, min=-4, max=1, step=0.1, description="learning rate", readout_format=".4f", **SLIDING
        ),
        "schedule": ipywidgets.Dropdown(options=SCHEDULES, description="schedule", **WIDE),
        "dropout": ipywidgets.FloatSlider(0.0, min=0, max=0.8, step=0.1, description="dropout", **SLIDING),
        "clip": ipywidgets.Checkbox(False, description="clip the gradient at 0.5", **WIDE),
        "ema": ipywidgets.Checkbox(False, description="evaluate the mean of the weights", **WIDE),
    }
