"""A decoder of many texts with a packed model: the products by PyTorch, all else by loops that numba compiles.

Texts are independent, so each thread gets its own rows. This is faster than sharing every matrix product between cores,
which then wait for one another. All products with a layer's h, for the layer itself at the next step and for the layer
above or the head at this one, are one product.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from charrnn.generation.logits import Truncation, checked
from charrnn.generation.numba_decoder import NumbaDecoder, PackedWeights, batch_draw, batch_step, out_of_range
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.kernels.numba_math import Fp32, as_array
from charrnn.types import Floats, Tokens

FEWEST = 16  # minimum number of texts per thread


class BatchDecoder:
    """A `decoder.Decoder` of B texts with a packed model.

    Args:
        packed: the model.
        precision: of the products and their factors, `fp32` or `bf16`.
    """

    def __init__(self, packed: PackedWeights, precision: str = "fp32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        own, above = packed.weight_hh, [*packed.weight_ih, packed.head]
        self._packed = packed
        self._weights = [torch.from_numpy(np.hstack(both)).to(dtype) for both in zip(own, above, strict=True)]
        none = np.zeros((len(own), 0, own.shape[1]), np.float32)
        shard = Shard(packed, self._weights, none, none)  # compiles the loops, or loads them: see `NumbaDecoder`
        shard.decode(np.zeros(0, np.int64))
        shard.decode_n(np.zeros((1, 0)), np.ones(1), Truncation())

    def prefill(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with these prompts, read one by one; logits `(B, V)`."""
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
        parts = np.array_split(tokens, len(self._shards))
        return np.concatenate(list(self._pool.map(Shard.decode, self._shards, parts)))

    def decode_n(self, uniform: Floats, pipeline: LogitsPipeline, step: int) -> Tokens:
        """Draw tokens `(N, B)` one after another for each text and read them."""
        truncation = pipeline.truncation
        if truncation is None:
            logits = np.concatenate([shard.logits() for shard in self._shards])
            return pipeline.decode_n(self.decode, logits, uniform, step)
        temperatures = pipeline.temperatures(step, len(uniform))
        parts = np.array_split(uniform, len(self._shards), axis=1)
        drawn = self._pool.map(lambda shard, part: shard.decode_n(part, temperatures, truncation), self._shards, parts)
        return np.concatenate(list(drawn), axis=1)

    def reorder(self, rows: Tokens) -> None:
        """Go on with the texts at these places."""
        states = ((shard.h, shard.c) for shard in self._shards)
        self._distribute(*(np.concatenate(part, axis=1)[:, rows] for part in zip(*states, strict=True)))

    def _distribute(self, h: Fp32, c: Fp32) -> None:
        """Go on from these states, `(L, B, H)` each."""
        count = min(self._threads, h.shape[1])
        parts = zip(np.array_split(h, count, axis=1), np.array_split(c, count, axis=1), strict=True)
        self._shards = [Shard(self._packed, self._weights, *map(np.ascontiguousarray, part)) for part in parts]


def _one_core_each(threads: int) -> ThreadPoolExecutor:
    """A pool of threads, in each of which PyTorch uses no other."""
    before, begun = torch.get_num_threads(), threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first call resets its number of threads to the process's
        torch.set_num_threads(1)
        begun.wait()

    pool = ThreadPoolExecutor(threads, initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(before)  # a new thread starts with the number that any thread set last
    return pool


class Shard:
    """The texts of one thread, from states h and c `(L, B, H)` on."""

    def __init__(self, packed: PackedWeights, weights: list[Tensor], h: Fp32, c: Fp32):
        self.h, self.c = h, c
        self._packed, self._weights, self._step = packed, weights, batch_step(packed.kind)
        (dtype,) = {weight.dtype for weight in weights}
        batch_size, vocab_size = h.shape[1], len(packed.head_bias)
        # all memory is allocated here, none at a step
        self._x = np.zeros_like(h[0])  # the input of the layer above, where that is not h
        self._logits = np.zeros((batch_size, vocab_size), np.float32)
        factors = [torch.empty(2, *self._x.shape, dtype=dtype, device="cpu") for _ in h]
        self._factors = [(both[0], both[1 if packed.residual else 0]) for both in factors]
        self._products = [torch.empty(batch_size, weight.shape[1], dtype=dtype, device="cpu") for weight in weights]
        self._factor_arrays = [tuple(map(as_array, both)) for both in self._factors]
        self._results = [as_array(product) for product in self._products]
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
        return self.logits()

    def logits(self) -> Floats:
        """The logits `(B, V)` after the last token of each text."""
        bias = self._packed.head_bias
        logits: Floats = self._products[-1][:, -len(bias) :].float().numpy() + bias
        return logits

    def decode_n(self, uniform: Floats, temperatures: Floats, truncation: Truncation) -> Tokens:
        """Draw tokens `(N, B)` one after another for each text and read them."""
        tokens = np.empty(uniform.shape, np.int64)
        bias, logits = self._packed.head_bias, self._logits
        for drawn, numbers, temperature in zip(tokens, uniform, temperatures, strict=True):
            if not batch_draw(self._scores, bias, numbers, temperature, truncation, logits, drawn):
                checked(logits)
            self._advance(drawn)
        return tokens

    def _advance(self, tokens: Tokens) -> None:
        results = self._results
        for layer, (h, c, factors) in enumerate(zip(self.h, self.c, self._factor_arrays, strict=True)):
            self._step(self._packed, layer, tokens, results[layer - 1], results[layer], h, c, self._x, *factors)
            self._multiply(layer)

    def _multiply(self, layer: int) -> None:
        """The products for the layer itself at the next step and for the one above at this step, side by side."""
        weight, result, (h, x) = self._weights[layer], self._products[layer], self._factors[layer]
        if not self._packed.residual:
            torch.mm(h, weight, out=result)
            return
        width = self._packed.weight_hh.shape[2]
        torch.mm(h, weight[:, :width], out=result[:, :width])
        torch.mm(x, weight[:, width:], out=result[:, width:])
