"""The surprisal of each token of a text to a network.

T  tokens of the text     V  vocab_size     surprisal  -log2 p in bits, where p is the probability of the token
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import log_softmax
from charrnn.generation.scoring import Bits, score
from charrnn.models.recurrent import evaluation_view


def surprisal(generator: TextGenerator, text: str, chunk: int = 1024) -> Bits:
    """Compute the surprisal `(T,)` of each token of `text` in bits, see `scoring.score`."""
    return score(generator, text, chunk).surprisal


def surprisal_and_entropy(generator: TextGenerator, text: str, chunk: int = 1024) -> tuple[Bits, Bits]:
    """Compute the surprisal of each token of `text` and its expected surprisal, the entropy: `(T,)` each, in bits.

    See `scoring.score`.
    """
    found = score(generator, text, chunk)
    return found.surprisal, found.entropy


def logits_along(generator: TextGenerator, text: str) -> NDArray[np.float64]:
    """Compute the logits `(T, V)` for each token of `text`, read after a newline."""
    tokens = torch.from_numpy(generator.tokenizer.encode("\n" + text).astype(np.int64))
    with torch.no_grad():
        return evaluation_view(generator.model)(tokens[None, :-1])[0][0].double().numpy(force=True)


def surprisal_and_entropy_at(
    generator: TextGenerator, text: str, temperatures: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the mean surprisal and mean entropy of `text` at each temperature, in bits per token.

    Returns:
        Two arrays with a value for each temperature: the cross-entropy of the text under the network, and the surprisal
        that the network expects.
    """
    logits, ids = logits_along(generator, text), generator.tokenizer.encode(text)
    came, expected = [], []
    for temperature in temperatures:
        log_p = log_softmax(logits / temperature) / math.log(2)  # (T, V)
        came.append(-log_p[np.arange(len(ids)), ids].mean())
        expected.append(-(np.exp2(log_p) * log_p).sum(axis=-1).mean())
    return np.array(came), np.array(expected)


def tokens_of(generator: TextGenerator, text: str) -> list[str]:
    """Split `text` into the texts of its tokens."""
    return [generator.tokenizer.decode([token]) for token in generator.tokenizer.encode(text)]
