"""The surprisal of a text for a model, token by token.

T  tokens of the text     p  probability that the model gave the token     surprisal  -log2 p, in bits (Shannon, 1948)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.generation.generator import TextGenerator
from charrnn.models.recurrent import evaluation_view

Bits = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Score:
    """A text as a model reads it: T tokens.

    Attributes:
        tokens: the text of each token.
        surprisal: `(T,)`, in bits.
        entropy: `(T,)`, in bits: the expected surprisal.
        likeliest: the text of the token that the model found likeliest at each place.
        characters: length of the text.
        spelling: bits to spell the unknown tokens, as `Tokenizer.spelling` does.
    """

    tokens: list[str]
    surprisal: Bits
    entropy: Bits
    likeliest: list[str]
    characters: int
    spelling: float = 0.0

    @property
    def probability(self) -> NDArray[np.float64]:
        """`(T,)`, the probability that the model gave each token."""
        return np.exp2(-self.surprisal)

    @property
    def bpc(self) -> float:
        """Bits per character, with the spelling of unknown tokens."""
        return (float(self.surprisal.sum()) + self.spelling) / self.characters

    def worst(self, count: int) -> list[int]:
        """Places of the `count` most surprising tokens, the most surprising first."""
        return [int(place) for place in np.argsort(-self.surprisal, kind="stable")[:count]]


def score(
    generator: TextGenerator, text: str, chunk: int = 1024, progress: Callable[[list[Any]], Iterable[Any]] = iter
) -> Score:
    """Read `text` and measure how well each token was predicted from all before it.

    The text is read as a generator reads it: after the newline of an empty prompt, with the state carried from end to
    end, without dropout.

    Args:
        generator: its model reads; the model's mode is not touched.
        text: of any length above 0.
        chunk: tokens that are read at once; the result does not depend on it.
        progress: wraps the loop over chunks, as `tqdm` does.

    Raises:
        UnknownCharacterError: a character outside the vocabulary.
        ValueError: the text is empty.
    """
    if not text:
        raise ValueError("expected a text of at least one character, got an empty one")
    model, tokenizer = evaluation_view(generator.model), generator.tokenizer
    tokens = torch.from_numpy(np.asarray(tokenizer.encode(text), dtype=np.int64))  # (T,)
    start = torch.from_numpy(generator.encode_prompt(""))
    inputs = torch.cat([start, tokens])[:-1]
    device = next(model.parameters()).device
    state, measured, likeliest = None, [], []
    with torch.inference_mode():
        for read, wanted in progress(list(zip(torch.split(inputs, chunk), torch.split(tokens, chunk), strict=True))):
            logits, state = model(read[None].to(device), state)  # (1, chunk, V)
            log_p = logits[0].double().log_softmax(-1).cpu() / np.log(2)
            expected = (log_p.exp2() * log_p).sum(-1)
            measured.append(torch.stack([log_p.gather(1, wanted[:, None])[:, 0], expected]))
            likeliest += log_p.argmax(-1).tolist()
    surprisal, entropy = 0.0 - torch.cat(measured, dim=1).numpy()  # minus would turn certainty into -0.0
    spelling = 0.0 if tokenizer.unknown is None else float(tokenizer.spelling(text)["bits"].sum())
    names, guesses = ([tokenizer.decode([token]) for token in ids] for ids in (tokens, likeliest))
    return Score(names, surprisal, entropy, guesses, len(text), spelling)
