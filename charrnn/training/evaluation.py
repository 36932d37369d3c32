"""The loss of a model on a whole split."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.config import DataConfig
from charrnn.data.corpora import absolute_name
from charrnn.data.corpus import Extent, data_config
from charrnn.data.streams import DocumentDataset
from charrnn.generation.generator import TextGenerator
from charrnn.models.recurrent import CharModel, evaluation_view
from charrnn.models.state import begin_rows, map_state
from charrnn.types import Tokens

# -------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def evaluate(
    model: CharModel,
    tokens: Tokens,
    streams: int | None = None,
    warmup: int = 256,
    progress: Callable[[range], Iterable[int]] = iter,
    end: int | None = None,
) -> float:
    """Mean loss in nats per token over all of `tokens`, dropout off, in fp32, state carried.

    The split is read as contiguous streams side by side. Each but the first starts with the state left by the `warmup`
    tokens before it, so that the result is, to about 1e-3, that of one pass from beginning to end. How many streams
    there are depends on the split alone: training settings do not change the number. Of documents each is read from an
    empty state.

    Args:
        model: on any device; its mode is not touched.
        tokens: ids `(N,)`, N at least 2.
        streams: read that many side by side; None is one for each 2048 tokens, at most 64.
        warmup: tokens read before a stream to prime its state.
        progress: wraps the loop, as `tqdm` does, to show how far it is.
        end: id of the end token that stands before, between and after the documents; None if `tokens` are one text.

    Raises:
        ValueError: fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"expected at least 2 tokens to evaluate on, got {len(tokens)}; use a longer text or split")
    if end is not None:
        return _evaluate_documents(model, tokens, end, progress)
    streams = streams or min(64, max(1, len(tokens) // 2048))
    length = math.ceil((len(tokens) - 1) / streams)
    device = next(model.parameters()).device
    chunk = max(1, min(256, 2**24 // (streams * model.vocab_size)))  # bounds the logits to 64 MiB
    model = evaluation_view(model)
    state = None
    if streams > 1:
        for start in range(max(0, length - warmup), length, chunk):  # the end of a row comes before the row below
            inputs = _rows(tokens, streams - 1, length, start, min(start + chunk, length)).to(device)
            _, state = model(inputs, state)
        state = map_state(lambda tensor: F.pad(tensor, (0, 0, 1, 0)), state)  # the first row starts from zeros
    total = 0.0
    for start in progress(range(0, length, chunk)):
        end = min(start + chunk, length)
        inputs = _rows(tokens[:-1], streams, length, start, end).to(device)  # (S, chunk)
        targets = _rows(tokens[1:], streams, length, start, end, padding=-100).to(device)  # it ignores -100
        logits, state = model(inputs, state)  # (S, chunk, V)
        total += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
    return total / (len(tokens) - 1)


def _evaluate_documents(
    model: CharModel, tokens: Tokens, end: int, progress: Callable[[range], Iterable[int]]
) -> float:
    device = next(model.parameters()).device
    dataset = DocumentDataset(tokens, 64, max(1, min(256, 2**18 // model.vocab_size)), end)  # logits of at most 64 MiB
    model, state, total = evaluation_view(model), None, 0.0
    for _, window in zip(progress(range(dataset.steps)), dataset.windows(0, device=device), strict=True):
        logits, state = model(window.inputs, begin_rows(state, window.begins))  # (B, T, V)
        total += F.cross_entropy(logits.float().flatten(0, 1), window.targets.flatten(), reduction="sum").item()
    return total / (len(tokens) - 1)


def _rows(tokens: Tokens, rows: int, length: int, start: int, end: int, padding: int = 0) -> Tensor:
    """Columns `start` to `end` of `tokens` laid out in rows of `length`, padded where the tokens end."""
    columns = np.full((rows, end - start), padding, dtype=np.int64)
    for row in range(rows):
        part = tokens[row * length + start : row * length + end]
        columns[row, : len(part)] = part
    return torch.from_numpy(columns)


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        loss: nats per token.
        tokens: that were predicted, all of the split but the first.
        characters: in those tokens; what is unknown counts in full.
        spelling: bits that it takes to spell what is unknown, as `Tokenizer.spelling` does.
    """

    loss: float
    tokens: int
    characters: int
    spelling: float = 0.0

    @property
    def bpc(self) -> float:
        """Bits per character, whatever the tokenizer; the spelling of what is unknown is charged."""
        return Extent(self.tokens, self.characters, self.spelling).bpc(self.loss / math.log(2))

    @property
    def perplexity(self) -> float:
        """exp(loss): the model is as unsure as if it chose among that many equally likely tokens; may be inf."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluation_config(generator: TextGenerator, data: str | Path | None = None, **settings: Any) -> DataConfig:
    """The text to measure a model on: `data`, or the one it was trained on; with the splits of its run.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    config = generator.config.data if generator.config else DataConfig()
    other = data_config(config.name if data is None else data)
    if absolute_name(other.name) != config.name:  # how its files are read is for another text to say
        kept = ["train_frac", "val_frac", *(["documents", "separator"] if config.documents else [])]
        config = other.model_copy(update={name: getattr(config, name) for name in kept})
    return data_config(config, **settings)
