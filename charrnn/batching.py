"""Many texts side by side through a folded model: the products by PyTorch, all else by loops that numba compiles."""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from charrnn.elementwise import ALONE
from charrnn.folded import Floats, Folded, FoldedStepper, Tokens, cells, draw
from charrnn.transforms import Cut, checked

NONE = np.zeros(0, np.float32)


class BatchStepper:
    """B texts at a time through a folded model, as `sampling.Stepper` wants it.

    Args:
        folded: the model.
        precision: of the factors of the products, `fp32` or `bf16`.
    """

    def __init__(self, folded: Folded, precision: str = "fp32"):
        self._folded, self._dtype = folded, torch.bfloat16 if precision == "bf16" else torch.float32
        self._weight_ih, self._weight_hh, self._head = (
            torch.from_numpy(weight).to(self._dtype) for weight in (folded.weight_ih, folded.weight_hh, folded.head)
        )

    def read(self, prompts: Sequence[Tokens]) -> Floats:
        """Start with these prompts, read one by one, so that each is as it would be alone; logits `(B, V)`."""
        alone = FoldedStepper(self._folded)
        logits, states = [], []
        for prompt in prompts:
            logits.append(alone.read([prompt])[0].copy())
            states.append(alone.state())
        self._start(*(np.stack(part, axis=1) for part in zip(*states, strict=True)))
        self._last = np.stack(logits)
        return self._last

    def select(self, rows: Tokens) -> None:
        """Go on with the texts at these places."""
        self._start(*(np.ascontiguousarray(part[:, rows]) for part in (self._h, self._c)))

    def _start(self, h: Floats, c: Floats) -> None:
        """Go on from these states, `(L, B, H)` each; memory is asked for once, and not again at each step."""
        self._h, self._c = h, c
        (batch_size, size), (vocab_size, width) = h.shape[1:], self._folded.rows.shape
        self._everyone = np.arange(batch_size)
        self._gates = np.empty((batch_size, width), np.float32)
        self._factor = torch.empty(batch_size, size, dtype=self._dtype, device="cpu")
        self._inputs, self._product, self._logits = (
            tuple(torch.empty(batch_size, length, dtype=dtype, device="cpu") for dtype in (self._dtype, torch.float32))
            for length in (width, width, vocab_size)
        )

    def step(self, tokens: Tokens) -> Floats:
        """Read one more token of each text, `(B,)`; logits `(B, V)`."""
        model, x = self._folded, None
        for layer, (h, c) in enumerate(zip(self._h, self._c, strict=True)):
            above = layer - 1
            if layer:
                product = self._multiply(x, self._weight_ih[above], self._inputs)
                inputs = (product, self._everyone, model.gain_ih[above], model.bias_ih[above])
            else:
                inputs = (model.rows, tokens, NONE, NONE)
            product = self._multiply(h, self._weight_hh[layer], self._product)
            own = (model.gain_hh[layer], model.bias_hh[layer], model.gain_c[layer], model.bias_c[layer])
            _together(cells, model.kind, *inputs, product, *own, h, c, self._gates)
            x = h + x if model.residual and layer else h
        self._last = self._multiply(x, self._head, self._logits) + model.head_bias
        return self._last

    def _multiply(self, x: Floats, weight: Tensor, result: tuple[Tensor, Tensor]) -> Floats:
        """The product of x `(B, N)` and the weight, in fp32, in the memory of `result`."""
        half, whole = result
        if self._dtype == torch.float32:
            return torch.mm(torch.from_numpy(x), weight, out=whole).numpy()
        torch.mm(self._factor.copy_(torch.from_numpy(x)), weight, out=half)
        return whole.copy_(half).numpy()

    def write(self, uniform: NDArray[np.float64], temperatures: NDArray[np.float64], cut: Cut) -> Tokens:
        """Draw tokens `(N, B)` one after another for each text and read them.

        Args:
            uniform: for each a number in [0, 1), `(N, B)`.
            temperatures: for each step, `(N,)`.
            cut: what is left out of the draw.

        Raises:
            ValueError: a logit is NaN or infinite, or all of a text are -inf.
        """
        *settings, possible = cut
        tokens = np.empty(uniform.shape, np.int64)
        for drawn, numbers, temperature in zip(tokens, uniform, temperatures, strict=True):
            if len(possible):
                self._last = np.where(possible, self._last, np.float32(-np.inf))
            _together(draw, self._last, numbers, temperature, *settings, drawn)
            if (drawn < 0).any():
                checked(self._last)
            self.step(drawn)
        return tokens


def _together(function: object, *arguments: object) -> None:
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    with ALONE:
        function(*arguments)
