"""A trained model out of its checkpoint, ready to write."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from charrnn.checkpoint import Checkpoint, load_checkpoint
from charrnn.config import ModelConfig
from charrnn.sampling import TextGenerator

if TYPE_CHECKING:
    from charrnn.models import CharModel


def load_model(path: str | Path, device: str = "cpu") -> TextGenerator:
    """The model in a checkpoint directory, or the best one of a run's directory.

    Args:
        path: the directory.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`, wherever it was trained. Single texts come fastest from a CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: `device` is not on this machine.
    """
    checkpoint = load_checkpoint(path)
    if device == "cpu":
        return _Stored(checkpoint)
    from charrnn.device import select_device

    model = checkpoint.model.to(select_device(device))
    return TextGenerator(model, checkpoint.tokenizer, checkpoint.config, checkpoint.training_state)


class _Stored(TextGenerator):
    """A generator whose model is made when it is first asked for: to write a text, its weights are enough."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.config = checkpoint.config
        self.training_state = checkpoint.training_state

    @functools.cached_property
    def model(self) -> "CharModel":
        """The model, on the CPU."""
        return self._checkpoint.model

    def _parts(self) -> tuple[Mapping[str, NDArray[np.float32]], ModelConfig] | None:
        if "model" in vars(self):  # it may have been trained since
            return super()._parts()
        return self._checkpoint.weights, self._checkpoint.config.model
