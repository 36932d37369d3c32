"""The loss of a model on a whole split."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from charrnn.config import DataConfig
from charrnn.data.corpora import absolute_name
from charrnn.data.corpus import Extent, data_config
from charrnn.data.streams import Batch, DocumentDataset
from charrnn.generation.generator import TextGenerator
from charrnn.models.recurrent import CharModel, evaluation_view
from charrnn.models.state import begin_rows, map_state
from charrnn.types import Tokens


@torch.no_grad()
def evaluate(
    model: CharModel,
    tokens: Tokens,
    streams: int | None = None,
    warmup: int = 256,
    progress: Callable[[range], Iterable[int]] = iter,
    end: int | None = None,
) -> float:
    """Mean loss in nats per token over all of `tokens`, with dropout off, in fp32, with the state carried.

    The split is read as contiguous streams side by side. Every stream but the first starts from the state left by the
    `warmup` tokens before it, so the result equals that of one pass from beginning to end to about 1e-3. The number of
    streams depends on the split alone, so training settings do not change the result. Documents are each read from an
    empty state.

    Args:
        model: on any device; its mode is not changed.
        tokens: ids `(N,)`, N at least 2.
        streams: number of streams; None is one for each 2048 tokens, at most 64.
        warmup: number of tokens that a stream's initial state is computed from.
        progress: wraps the loop, as `tqdm` does, to show progress.
        end: id of the end token that stands before, between and after the documents; None if `tokens` are one text.

    Raises:
        ValueError: fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"expected at least 2 tokens to evaluate on, got {len(tokens)}; use a longer text or split")
    device, view = next(model.parameters()).device, evaluation_view(model)
    state, total = None, 0.0
    if end is not None:
        dataset = DocumentDataset(tokens, 64, max(1, min(256, 2**18 // model.vocab_size)), end)  # logits up to 64 MiB
        steps, batches = range(dataset.steps), dataset.windows(0, device=device)
    else:
        streams = streams or min(64, max(1, len(tokens) // 2048))
        length = math.ceil((len(tokens) - 1) / streams)
        chunk = max(1, min(256, 2**24 // (streams * model.vocab_size)))  # logits up to 64 MiB
        if streams > 1:  # the end of a row comes before the row below
            for batch in _stream_batches(tokens, streams - 1, length, max(0, length - warmup), chunk, device):
                _, state = view(batch.inputs, state)
            state = map_state(lambda tensor: F.pad(tensor, (0, 0, 1, 0)), state)  # the first row starts from zeros
        steps, batches = range(0, length, chunk), _stream_batches(tokens, streams, length, 0, chunk, device)
    for _, batch in zip(progress(steps), batches, strict=True):
        logits, state = view(batch.inputs, begin_rows(state, batch.begins))  # (B, T, V)
        total += F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), reduction="sum").item()
    return total / (len(tokens) - 1)


def _stream_batches(
    tokens: Tokens, rows: int, length: int, first: int, chunk: int, device: torch.device
) -> Iterator[Batch]:
    """`tokens` laid out in rows of `length`, from column `first`, in batches of `chunk` columns."""
    for start in range(first, length, chunk):
        end = min(start + chunk, length)
        inputs = np.zeros((rows, end - start), dtype=np.int64)
        targets = np.full_like(inputs, -100)  # where the tokens end
        for row, begin in enumerate(range(start, rows * length, length)):
            for array, part in ((inputs, tokens[:-1]), (targets, tokens[1:])):
                columns = part[begin : begin + end - start]
                array[row, : len(columns)] = columns
        yield Batch(end, chunk, torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        loss: nats per token.
        tokens: number of predicted tokens: all of the split but the first.
        characters: number of characters in these tokens, including those that unknown tokens stand for.
        spelling: bits needed to spell out what the unknown tokens stand for, see `Tokenizer.spelling`.
    """

    loss: float
    tokens: int
    characters: int
    spelling: float = 0.0

    @property
    def bpc(self) -> float:
        """Bits per character with any tokenizer, including the bits to spell out unknown tokens."""
        return Extent(self.tokens, self.characters, self.spelling).bpc(self.loss / math.log(2))

    @property
    def perplexity(self) -> float:
        """exp(loss): the model is as uncertain as if it chose among that many equally likely tokens; may be inf."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.loss))


def evaluation_config(generator: TextGenerator, data: str | Path | None = None, **settings: Any) -> DataConfig:
    """The settings of the text to measure a model on: `data`, or the text of its run, with the splits of its run.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    config = generator.config.data if generator.config else DataConfig()
    other = data_config(config.name if data is None else data)
    if absolute_name(other.name) != config.name:  # another text has its own encoding, separator and so on
        kept = ["train_frac", "val_frac", *(["documents", "separator"] if config.documents else [])]
        config = other.model_copy(update={name: getattr(config, name) for name in kept})
    return data_config(config, **settings)
