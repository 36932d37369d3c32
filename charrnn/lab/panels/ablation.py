"""A widget: switches for the ingredients of a recipe, a button that trains, and the losses as they come."""

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

SCHEDULES = ("constant", "cosine", "onecycle")  # the others wait for more epochs than there are here


class AblationPanel(ControlPanel):
    """Optimizer, learning rate, schedule, dropout, clipping and the mean of the weights, and a button that trains.

    The training runs in a thread of its own, so that Stop is heard. The losses of the run before stay in the picture.

    Args:
        train: token ids `(N,)` to learn from.
        val: token ids to evaluate on.
        vocab_size: tokens V.
        steps: of a run.
        every: seconds between two drawings, at least.

    Attributes:
        image: the losses.
        words: the alt text, and what went wrong.
        records: what the latest run has told so far.
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
        """What the controls say, named as on the command line."""
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
        """Train with what the controls say; nothing happens while a run is going on."""
        if self._worker.running:
            return
        self._before, self.records = self.records or self._before, []
        trainer = self._trainer = small_trainer(*self._text, **self.settings())
        self.start_button.disabled, self.stop_button.disabled = True, False
        self._worker.start(lambda _: self._train(trainer), self._finish)

    def stop(self, _: Any = None) -> None:
        """End the run after the present step."""
        if self._trainer is not None:
            self._trainer.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when no run is going on, True, or after `timeout` seconds, False."""
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
