"""n-gram models: counting as a baseline, measured on the same split as any network.

The probability of a token is estimated from how often it followed the last n - 1 tokens in the training text.
Contexts that are rare or new borrow from shorter ones, by interpolated modified Kneser-Ney smoothing (Chen & Goodman,
1999, "An empirical study of smoothing techniques for language modeling"; Kneser & Ney, 1995):

    P(w | h) = max(c(hw) - D, 0) / c(h) + gamma(h) P(w | h')

    h   the last n - 1 tokens; h' is h without its first
    c   how often a gram occurs; below the highest order: in how many different contexts
    D   a discount for grams seen once, twice, and more often
    gamma(h)   the probability that the discounts freed, so that all probabilities sum to 1
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from charrnn.data.corpus import Extent
from charrnn.data.tokenizer import Tokenizer, count_characters
from charrnn.types import Tokens

Floats = NDArray[np.float64]

Ints = NDArray[np.int64]


class _Level(NamedTuple):
    """The smoothed counts of one order."""

    share: Floats  # max(c(hw) - D, 0) / c(h) of each gram
    gamma: Floats  # of each context; 1 where nothing was counted


class NgramModel:
    """All n-grams of a text up to an order; predicts with any order up to that.

    Args:
        tokens: ids `(N,)` to count in.
        vocab_size: number of different tokens V.
        max_order: the largest n.
        progress: wraps the loop over the orders, as `tqdm` does.

    Raises:
        ValueError: fewer tokens than `max_order`.
    """

    def __init__(
        self, tokens: Tokens, vocab_size: int, max_order: int = 8, progress: Callable[[range], Iterable[int]] = iter
    ):
        if len(tokens) < max_order:
            raise ValueError(f"expected at least {max_order} tokens to count {max_order}-grams in, got {len(tokens)}")
        self.vocab_size = vocab_size
        self.max_order = max_order
        ids = tokens.astype(np.int64)  # of the k-gram that ends at each token
        # grams of order k, sorted: (id of its first k - 1 tokens) * V + its last token; every single token is a gram
        self._grams = [np.arange(vocab_size)]
        counts = [np.bincount(ids, minlength=vocab_size)]
        contexts = []  # in how many different contexts the grams of an order occur
        for k in progress(range(2, max_order + 1)):
            keys = ids[:-1] * vocab_size + tokens[k - 1 :].astype(np.int64)
            # NumPy's unique takes twice as long
            unique = torch.unique(torch.from_numpy(keys), return_inverse=True, return_counts=True)
            grams, longer, count = (part.numpy() for part in unique)
            last = np.empty(len(grams), np.int64)
            last[longer] = ids[1:]  # the same gram without its first token
            contexts.append(np.bincount(last, minlength=len(self._grams[-1])))
            self._grams.append(grams)
            counts.append(count)
            ids = longer
        self._highest = [self._level(k, count) for k, count in enumerate(counts, 1)]
        self._lower = [self._level(k, count) for k, count in enumerate(contexts, 1)]

    def _level(self, order: int, count: Ints) -> _Level:
        """The discounted shares of the grams of an order, and the probability left over in each of their contexts."""
        parents = 1 if order == 1 else len(self._grams[order - 2])
        parent = np.zeros(len(count), np.int64) if order == 1 else self._grams[order - 1] // self.vocab_size
        # if every token was seen, no probability has to be set aside for new ones
        discount = np.zeros(4) if order == 1 and count.all() else _discounts(count)
        taken = np.minimum(discount[np.minimum(count, 3)], count)
        total = np.bincount(parent, count, parents)
        left = np.bincount(parent, taken, parents)
        share = np.divide(count - taken, total[parent], out=np.zeros(len(count)), where=total[parent] > 0)
        return _Level(share, np.divide(left, total, out=np.ones(parents), where=total > 0))

    def _levels(self, order: int) -> list[_Level]:
        if not 0 <= order <= self.max_order:
            raise ValueError(f"order: expected 0 to {self.max_order}, got {order}")
        return [*self._lower[: order - 1], self._highest[order - 1]] if order else []

    def _find(self, order: int, keys: Ints) -> Ints:
        """Ids of the grams of an order; -1 for those that the text does not have."""
        grams = self._grams[order - 1]
        place = np.minimum(np.searchsorted(grams, keys), len(grams) - 1)
        return np.where(grams[place] == keys, place, -1)

    def probabilities(self, tokens: Tokens, order: int) -> Floats:
        """The probability `(N - 1,)` of each token but the first, given up to `order` - 1 tokens before it.

        Args:
            tokens: ids `(N,)`.
            order: n; 1 ignores what came before, 0 takes all tokens to be equally likely.

        Raises:
            ValueError: an order that was not counted.
        """
        sequence = tokens.astype(np.int64)
        result = np.full(len(sequence), 1 / self.vocab_size)
        ids = sequence  # of the (k - 1)-gram before each token, then of the k-gram that ends with it
        for k, level in enumerate(self._levels(order), 1):
            if k == 1:
                result = level.share[ids] + level.gamma[0] * result
                continue
            context = np.concatenate([[-1], ids[:-1]])
            ids = np.where(context < 0, -1, self._find(k, context * self.vocab_size + sequence))
            gamma = np.where(context < 0, 1.0, level.gamma[context])
            result = np.where(ids < 0, 0.0, level.share[ids]) + gamma * result
        return result[1:]

    def distribution(self, context: Tokens, order: int) -> Floats:
        """The probability `(V,)` of every token after `context`, of which the last `order` - 1 tokens count.

        Raises:
            ValueError: an order that was not counted.
        """
        result = np.full(self.vocab_size, 1 / self.vocab_size)
        for k, level in enumerate(self._levels(order), 1):
            parent = self._gram(context[len(context) - k + 1 :]) if k <= len(context) + 1 else -1
            if parent < 0:
                break  # the longer contexts are unknown, too
            grams = self._grams[k - 1]
            first, last = np.searchsorted(grams, [parent * self.vocab_size, (parent + 1) * self.vocab_size])
            result *= level.gamma[parent]
            result[grams[first:last] % self.vocab_size] += level.share[first:last]
        return result

    def _gram(self, tokens: Tokens) -> int:
        """Id of a gram: 0 for the empty gram, -1 if it does not occur."""
        gram = 0
        for k, token in enumerate(tokens, 1):
            gram = int(self._find(k, np.array([gram * self.vocab_size + int(token)]))[0])
            if gram < 0:
                break
        return gram

    def bits(self, tokens: Tokens, order: int) -> float:
        """Mean surprisal, in bits per token, of all of `tokens` but the first."""
        if order == 0:
            return math.log2(self.vocab_size)
        return 0.0 - float(np.log2(self.probabilities(tokens, order)).mean())  # no -0.0

    def generate(self, prompt: Tokens, length: int, order: int, seed: int = 0) -> list[int]:
        """Draw `length` tokens one after the other, going on from `prompt`."""
        rng = np.random.default_rng(seed)
        text = [int(token) for token in prompt]
        for _ in range(length):
            probabilities = self.distribution(np.array(text[max(0, len(text) - order + 1) :], np.int64), order)
            text.append(int(rng.choice(self.vocab_size, p=probabilities / probabilities.sum())))
        return text[len(prompt) :]


def _discounts(count: Ints) -> Floats:
    """The discounts of a count of 0, 1, 2, 3 and more (Chen & Goodman, 1999, equation 26)."""
    once, twice, thrice, four = (int((count == times).sum()) for times in (1, 2, 3, 4))
    if once and twice and thrice:
        scale = once / (once + 2 * twice)
        estimate = [1 - 2 * scale * twice / once, 2 - 3 * scale * thrice / twice, 3 - 4 * scale * four / thrice]
        if min(estimate) > 0:  # a discount of 0 would leave unseen grams no probability
            return np.array([0.0, *estimate])
    return np.array([0.0, 0.5, 1.0, 1.5])  # too few rare grams to estimate it from


def ngram_ladder(
    model: NgramModel, tokenizer: Tokenizer, tokens: Tokens, extent: Extent | None = None
) -> dict[str, float]:
    """Bits per character on `tokens` of every order of a model: uniform, unigram, 2-gram and up.

    Args:
        model: counted on a training split.
        tokenizer: of that text.
        tokens: ids `(N,)` of the split to measure on; all but the first are predicted.
        extent: their size as text, from `Corpus.predicted`; only needed where some are unknown.

    Raises:
        ValueError: there is nothing to predict, or some tokens are unknown and `extent` is missing.
    """
    if extent is None:
        if tokenizer.unknown is not None and (tokens[1:] == tokenizer.unknown).any():
            raise ValueError("extent: expected that of the tokens, some of which are unknown; see Corpus.predicted")
        extent = Extent(len(tokens) - 1, count_characters(tokenizer, tokens[1:]), 0.0)
    if not extent.characters:
        raise ValueError(f"expected a character to predict, got {len(tokens)} tokens; use a longer text or split")
    names = ["uniform", "unigram", *(f"{order}-gram" for order in range(2, model.max_order + 1))]
    return {name: extent.bpc(model.bits(tokens, order)) for order, name in enumerate(names)}
