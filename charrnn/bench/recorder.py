"""Record what a training run achieves; evaluations do not count as training time."""

from charrnn.training.events import Evaluated, Event, Stepped
from charrnn.training.trainer import Trainer

Curve = dict[str, list[float]]


class Recorder:
    """A callback that records the validation loss over tokens read and over seconds of training.

    It subtracts the time of evaluations from the trainer's clock, so that they do not use up its budget.

    Attributes:
        tokens: read so far.
        seconds: of training so far.
        curve: `characters` (tokens read), `seconds` and `val_loss` (nats per token), with an entry for each evaluation.
    """

    def __init__(self, trainer: Trainer):
        self.tokens, self.seconds = 0, 0.0
        self.curve: Curve = {"characters": [], "seconds": [], "val_loss": []}
        self._trainer = trainer

    def __call__(self, event: Event) -> None:
        """Record a step or an evaluation."""
        if isinstance(event, Stepped):
            self.tokens = round(event.epoch * self._trainer.dataset.epoch_tokens)
            self.seconds = event.seconds
        elif isinstance(event, Evaluated):
            self._trainer.progress.seconds = self.seconds
            self.curve["characters"].append(self.tokens)
            self.curve["seconds"].append(self.seconds)
            self.curve["val_loss"].append(event.loss)
