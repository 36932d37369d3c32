"""Decoders step a model token by token; they keep its state. `ModelDecoder` takes any model on any device."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.device import autocast
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.models.recurrent import evaluation_view
from charrnn.models.state import State, map_state
from charrnn.types import Floats, Tokens


class Decoder(Protocol):
    """Reads and writes B texts side by side."""

    def prefill(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with these B prompts; logits `(B, V)` after each, the same as if it were alone."""

    def decode(self, tokens: Tokens) -> Floats:
        """Read one more token of each text, `(B,)`; logits `(B, V)` after it."""

    def decode_n(self, uniform: Floats, pipeline: LogitsPipeline, step: int) -> Tokens:
        """Draw N tokens of each text, `(N, B)`, one after another, and read them.

        Args:
            uniform: a number in [0, 1) for each, `(N, B)`.
            pipeline: processes the logits before each draw.
            step: number of the first draw, counted from the beginning of the text.

        Raises:
            ValueError: a logit is NaN or infinite, or all of a text are -inf.
        """

    def reorder(self, rows: Tokens) -> None:
        """Go on with the texts at these places `(B',)`; one may be taken twice."""


class ResumableDecoder(Decoder, Protocol):
    """A decoder of one text that can return to an earlier place."""

    def extend(self, tokens: Tokens) -> Floats:
        """Read more tokens, `(T,)`; logits `(1, V)` after them."""

    def snapshot(self) -> Any:
        """The state and the logits as they are now, for `restore`."""

    def restore(self, snapshot: Any) -> Floats:
        """Go back to the place where `snapshot` was taken; logits `(1, V)`."""


class ModelDecoder:
    """The plain decoder: each step is a call of the model, without dropout.

    Args:
        model: anything with the contract `logits, state = model(tokens, state)`.
        precision: of the large products, `fp32` or `bf16`.
        chunk: tokens of a prompt that are read at once.
    """

    def __init__(self, model: torch.nn.Module, precision: str = "fp32", chunk: int = 1024):
        self._model, self._precision, self._chunk = evaluation_view(model), precision, chunk
        self._device = next(model.parameters()).device
        self._state: State = None
        self._logits = np.zeros((1, 0), np.float32)

    def prefill(self, prompts: Sequence[Tokens]) -> NDArray[np.float32]:
        """Start with these prompts, read one by one; logits `(B, V)`."""
        logits, states = [], []
        for prompt in prompts:
            self._state = None
            logits.append(self.extend(prompt))
            states.append(self._state)
        self._state = map_state(lambda *parts: torch.cat(parts), *states)
        self._logits = np.concatenate(logits)
        return self._logits

    def extend(self, tokens: Tokens) -> NDArray[np.float32]:
        """Read more tokens of the one text, `(T,)`; logits `(1, V)` after them."""
        for start in range(0, len(tokens), self._chunk):
            self._run(torch.from_numpy(tokens[None, start : start + self._chunk]))
        return self._logits

    def snapshot(self) -> tuple[State, NDArray[np.float32]]:
        """The state and the logits, for `restore`; a step makes new ones and changes neither."""
        return self._state, self._logits

    def restore(self, snapshot: tuple[State, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Go back to the place where `snapshot` was taken; logits `(1, V)`."""
        self._state, self._logits = snapshot
        return self._logits

    def decode(self, tokens: Tokens) -> NDArray[np.float32]:
        """Read one more token of each text, `(B,)`; logits `(B, V)`."""
        return self._run(torch.from_numpy(tokens[:, None]))

    def decode_n(self, uniform: Floats, pipeline: LogitsPipeline, step: int) -> Tokens:
        """Draw tokens `(N, B)` one after another and read them."""
        return pipeline.decode_n(self.decode, self._logits, uniform, step)

    def reorder(self, rows: Tokens) -> None:
        """Go on with the texts at these places."""
        self._state = map_state(lambda part: part[torch.from_numpy(rows).to(part.device)], self._state)

    def _run(self, tokens: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode(), autocast(self._device, self._precision):
            logits, self._state = self._model(tokens.to(self._device), self._state)
            self._logits = logits[:, -1].float().numpy(force=True)
            return self._logits
