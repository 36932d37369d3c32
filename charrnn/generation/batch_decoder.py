"""Many texts side by side through a packed model: the products by PyTorch, all else by loops that numba compiles.

The texts are dealt out to threads that never meet, for a text needs nothing of another: cores that share each product
spend more time waiting for one another than multiplying. All that reads a layer's h, the layer itself at the next step
and the layer above or the head at this one, is one product.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.generation.logits import Cut, checked
from charrnn.generation.numba_decoder import Floats, NumbaDecoder, PackedWeights, cells, draw, out_of_range
from charrnn.types import Tokens

FEWEST = 16  # texts that are worth a thread


class BatchDecoder:
    """B texts at a time through a packed model, as `decoder.Decoder` wants it.

    Args:
        packed: the model.
        precision: of the factors of the products and of what they give, `fp32` or `bf16`.
    """

    def __init__(self, packed: PackedWeights, precision: str = "fp32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        own, above = packed.weight_hh, [*packed.weight_ih, packed.head]
        self._packed = packed
        self._weights = [torch.from_numpy(np.hstack(both)).to(dtype) for both in zip(own, above, strict=True)]
        none = np.zeros((len(own), 0, own.shape[1]), np.float32)
        shard = _Shard(packed, self._weights, none, none)  # compiles the loops, or loads them: see `NumbaDecoder`
        shard.decode(np.zeros(0, np.int64))
        shard.decode_n(np.zeros((1, 0)), np.ones(1), Cut())

    def prefill(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with these prompts, read one by one, so that each is as it would be alone; logits `(B, V)`."""
        alone = NumbaDecoder(self._packed)
        logits, states = [], []
        for prompt in prompts:
            logits.append(alone.prefill([prompt])[0].copy())
            states.append(alone.snapshot()[:2])
        self._threads = max(1, min(torch.get_num_threads(), len(prompts) // FEWEST))
        self._pool = _one_core_each(self._threads)
        self._distribute(*(np.stack(part, axis=1) for part in zip(*states, strict=True)))
        return np.stack(logits)

    def decode(self, tokens: Tokens) -> Floats:
        """Read one more token of each text, `(B,)`; logits `(B, V)`."""
        return np.concatenate(
            list(self._pool.map(_Shard.decode, self._shards, np.array_split(tokens, len(self._shards))))
        )

    def reorder(self, rows: Tokens) -> None:
        """Go on with the texts at these places."""
        states = ((shard.h, shard.c) for shard in self._shards)
        self._distribute(*(np.concatenate(part, axis=1)[:, rows] for part in zip(*states, strict=True)))

    def decode_n(self, uniform: NDArray[np.float64], temperatures: NDArray[np.float64], cut: Cut) -> Tokens:
        """Draw tokens `(N, B)` one after another for each text and read them.

        Args:
            uniform: for each a number in [0, 1), `(N, B)`.
            temperatures: for each step, `(N,)`.
            cut: what is left out of the draw.

        Raises:
            ValueError: a logit is NaN or infinite, or all of a text are -inf.
        """
        dealt = np.array_split(uniform, len(self._shards), axis=1)
        written = self._pool.map(lambda shard, part: shard.decode_n(part, temperatures, cut), self._shards, dealt)
        return np.concatenate(list(written), axis=1)

    def _distribute(self, h: Floats, c: Floats) -> None:
        """Go on from these states, `(L, B, H)` each."""
        count = min(self._threads, h.shape[1])
        parts = zip(np.array_split(h, count, axis=1), np.array_split(c, count, axis=1), strict=True)
        self._shards = [_Shard(self._packed, self._weights, *map(np.ascontiguousarray, part)) for part in parts]


def _one_core_each(threads: int) -> ThreadPoolExecutor:
    """So many threads, in each of which PyTorch uses no other."""
    before, begun = torch.get_num_threads(), threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first time a thread needs the number, it takes the process's, whatever it set
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(before)  # for the threads of others: each takes, when it begins, what was last set anywhere
    return pool


class _Shard:
    """The texts that one thread writes, from states h and c `(L, B, H)` on."""

    def __init__(self, packed: PackedWeights, weights: list[Tensor], h: Floats, c: Floats):
        self.h, self.c = h, c
        self._packed, self._weights, self._cells = packed, weights, cells(packed.kind)
        (dtype,) = {weight.dtype for weight in weights}
        batch_size, vocab_size = h.shape[1], len(packed.head_bias)
        # memory is asked for once, and not again at each step
        self._x = np.zeros_like(h[0])  # what the layer above reads, where that is not h
        self._logits = np.zeros((batch_size, vocab_size), np.float32)
        factors = [torch.empty(2, *self._x.shape, dtype=dtype, device="cpu") for _ in h]
        self._factors = [(both[0], both[1 if packed.residual else 0]) for both in factors]
        self._products = [torch.empty(batch_size, weight.shape[1], dtype=dtype, device="cpu") for weight in weights]
        self._seen = [tuple(map(_numbers, both)) for both in self._factors]
        self._results = [_numbers(product) for product in self._products]
        self._scores = self._results[-1][:, -vocab_size:]
        for layer, own in enumerate(h):
            self._x += own
            factors[layer].copy_(torch.from_numpy(np.stack([own, self._x])))
            self._multiply(layer)

    def decode(self, tokens: Tokens) -> Floats:
        """Read one more token of each text, `(B,)`; logits `(B, V)`."""
        vocab_size = len(self._packed.rows)
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < vocab_size):
            raise out_of_range(tokens, vocab_size)
        self._advance(tokens)
        return self._products[-1][:, -len(self._packed.head_bias) :].float().numpy() + self._packed.head_bias

    def decode_n(self, uniform: NDArray[np.float64], temperatures: NDArray[np.float64], cut: Cut) -> Tokens:
        """As `BatchDecoder.write`."""
        *settings, possible = cut
        tokens = np.empty(uniform.shape, np.int64)
        bias, logits = self._packed.head_bias, self._logits
        for drawn, numbers, temperature in zip(tokens, uniform, temperatures, strict=True):
            if not draw(self._scores, bias, possible, numbers, temperature, *settings, logits, drawn):
                checked(logits)
            self._advance(drawn)
        return tokens

    def _advance(self, tokens: Tokens) -> None:
        results = self._results
        for layer, (h, c, seen) in enumerate(zip(self.h, self.c, self._seen, strict=True)):
            self._cells(self._packed, layer, tokens, results[layer - 1], results[layer], h, c, self._x, *seen)
            self._multiply(layer)

    def _multiply(self, layer: int) -> None:
        """What the layer reads at the next step and what is above it at this one, side by side."""
        weight, result, (h, x) = self._weights[layer], self._products[layer], self._factors[layer]
        if not self._packed.residual:
            torch.mm(h, weight, out=result)
            return
        width = self._packed.weight_hh.shape[2]
        torch.mm(h, weight[:, :width], out=result[:, :width])
        torch.mm(x, weight[:, width:], out=result[:, width:])


def _numbers(tensor: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """The tensor's memory, of bf16 the bits: numpy has no such numbers."""
    return (tensor if tensor.dtype == torch.float32 else tensor.view(torch.uint16)).numpy()
