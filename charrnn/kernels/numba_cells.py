"""The LSTM over a whole sequence on a CPU, its loops compiled by numba. The readable twin is `cells.lstm_cell`.

    outputs, (h, c) = lstm(inputs, (h, c), weight_ih, weight_hh, bias_ih, bias_hh, tokens=None)

equals `unroll(lstm_cell, ...)` and `fused.lstm`, by the same equations:

    a_t = W_ih x_t + W_hh h_{t-1} + b        i, f, o = sigmoid(a), g = tanh(a)
    c_t = f * c_{t-1} + i * g                h_t = o * tanh(c_t)

In `fused` a step is one matrix product and a dozen passes over memory, each a framework call. Here it is the product
and one pass: each stream's numbers are read once, a unit is computed in registers, and the numbers that backward needs
are written once. The streams are spread over the processor's cores. Weights and cell are fp32. Under autocast the
factors of the products are bf16; a processor without that type reads them as the upper half of an fp32 number.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import numba
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from charrnn.kernels.cache import cached_jit, jit
from charrnn.kernels.fused import input_products
from charrnn.kernels.numba_math import ONE, Array, as_array, read, sigmoid, tanh, write
from charrnn.types import Tokens

ALONE = threading.Lock()  # one of numba's threading layers ends the process if two threads use it at once


def lstm(
    inputs: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor, tokens: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm_cell` over a whole sequence; arguments and results as in `fused.rnn`, but fp32 on a CPU.

    Under autocast to bf16 the outputs are bf16, as those of `nn.LSTM` are.

    Raises:
        IndexError: a token that is not a row of `inputs`.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    if tokens is not None and not (tokens.min() >= 0 and tokens.max() < len(inputs)):
        raise IndexError(f"expected tokens from 0 to {len(inputs) - 1}, got {tokens.min()} to {tokens.max()}")
    rows = input_products(inputs, weight_ih, bias_ih + bias_hh, tokens).flatten(0, -2)
    if tokens is None:  # a row of products for each step of each stream
        places = torch.arange(len(rows)).view(inputs.shape[1], inputs.shape[0])
    else:  # a row for each token of the vocabulary
        places = tokens.t().contiguous()
    _launch_threads()
    available = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set when numba is loaded
    numba.set_num_threads(min(torch.get_num_threads(), available))
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _LSTM.apply
    outputs, h, c = apply(rows, places, tokens is None, *state, weight_hh, half)
    return outputs.transpose(0, 1), (h, c)


@functools.cache
def _launch_threads() -> None:
    """Launch numba's threads. This sets the threads of OpenMP, and so of PyTorch, to all cores; set them back."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)


@functools.cache
def prepare() -> None:
    """Run a forward and a backward pass, so that the loops are compiled or loaded, or fail, here."""
    with torch.inference_mode(False), torch.enable_grad():
        weight, bias = torch.zeros(4, 1, device="cpu", requires_grad=True), torch.zeros(4, device="cpu")
        zero = torch.zeros(1, 1, device="cpu")
        outputs, _ = lstm(zero[None], (zero, zero), weight, weight, bias, bias)
        torch.autograd.backward(outputs.sum())


class _LSTM(Function):
    """The recurrence; `places` `(T, B)` says which of `rows` `(N, 4H)` is the input product of a step of a stream.

    The equations of backward are those of `fused._LSTM`.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, places: Tensor, distinct: bool, h0: Tensor, c0: Tensor, weight_hh: Tensor, half: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        (steps, batch), hidden = places.shape, weight_hh.shape[1]
        dtype = torch.bfloat16 if half else weight_hh.dtype
        states = torch.empty(steps + 1, batch, hidden, dtype=dtype)
        cells = torch.empty(steps + 1, batch, hidden)
        states[0], cells[0] = h0, c0
        gates, shown = torch.empty(steps, batch, 4 * hidden), torch.empty(steps, batch, hidden)  # shown: tanh(c)
        product = torch.empty(batch, 4 * hidden, dtype=dtype)
        weight = weight_hh.to(dtype).t().contiguous()
        arrays = [as_array(tensor) for tensor in (rows.contiguous(), places, product, cells, gates, shown, states)]
        x, place, p, c, gate, show, h = arrays
        for t, state in enumerate(states[:-1].unbind(0)):
            torch.mm(state, weight, out=product)
            with ALONE:
                _step(x, place[t], p, c[t], gate[t], c[t + 1], show[t], h[t + 1])
        ctx.save_for_backward(places, states, cells, gates, shown, weight_hh)
        ctx.distinct, ctx.rows = distinct, rows
        return states[1:], states[-1].to(h0.dtype, copy=True), cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        places, states, cells, gates, shown, weight_hh = ctx.saved_tensors
        dtype = states.dtype
        d_outputs = d_outputs.to(dtype).contiguous()
        d_h, d_c = d_h.to(dtype, copy=True), d_c.clone()
        d_gates = torch.empty(gates.shape, dtype=dtype)
        weight = weight_hh.to(dtype)
        arrays = [as_array(tensor) for tensor in (d_outputs, d_h, d_c, gates, shown, cells, d_gates)]
        d_out, carried, d_cell, gate, show, c, d_gate = arrays
        for t in range(len(places) - 1, -1, -1):
            with ALONE:
                _step_backward(d_out[t], carried, d_cell, gate[t], show[t], c[t], d_gate[t])
            torch.mm(d_gates[t], weight, out=d_h)
        d_gates = d_gates.flatten(0, 1)  # (T B, 4H)
        d_weight = d_gates.t() @ states[:-1].flatten(0, 1)
        d_rows = d_gates if ctx.distinct else _sum_by_token(d_gates, places.flatten(), len(ctx.rows))
        return d_rows.to(ctx.rows.dtype), None, None, d_h.to(d_c.dtype), d_c, d_weight.to(weight_hh.dtype), None


def _sum_by_token(d_gates: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """The sum of the rows of `d_gates` `(N, 4H)` that belong to each token, `(V, 4H)`."""
    if vocab_size > 512:
        return torch.zeros(vocab_size, d_gates.shape[1]).index_add_(0, tokens, d_gates.float())
    return F.one_hot(tokens, vocab_size).to(d_gates.dtype).t() @ d_gates  # one product is faster than as many sums


# ------------------------------------------------------------------------------------------------ compiled by numba

# Each loop has few arrays, so that the compiler turns it into vector instructions.


@jit()
def _sigmoid_gates(gate: Array, row: Array, product: Array, start: int, end: int) -> None:
    for j in range(start, end):
        gate[j] = sigmoid(read(row[j]) + read(product[j]))


@jit()
def _tanh_gates(gate: Array, row: Array, product: Array, start: int, end: int) -> None:
    for j in range(start, end):
        gate[j] = tanh(read(row[j]) + read(product[j]))


@jit()
def _update(gate: Array, before: Array, c: Array, shown: Array, h: Array) -> None:
    size = len(c)
    for j in range(size):
        c[j] = gate[size + j] * before[j] + gate[j] * gate[2 * size + j]
    for j in range(size):
        shown[j] = tanh(c[j])
    for j in range(size):
        write(h, j, gate[3 * size + j] * shown[j])


@cached_jit(parallel=True)
def _step(
    rows: Array, places: Tokens, products: Array, before: Array, gates: Array, c: Array, shown: Array, h: Array
) -> None:
    """One step of every stream."""
    batch, size = c.shape
    for b in prange(batch):
        row, product, gate = rows[places[b]], products[b], gates[b]
        _sigmoid_gates(gate, row, product, 0, 2 * size)
        _tanh_gates(gate, row, product, 2 * size, 3 * size)
        _sigmoid_gates(gate, row, product, 3 * size, 4 * size)
        _update(gate, before[b], c[b], shown[b], h[b])


@cached_jit(parallel=True)
def _step_backward(
    d_outputs: Array, d_h: Array, d_c: Array, gates: Array, shown: Array, before: Array, d_gates: Array
) -> None:
    """One step backward of every stream; `d_c` becomes the gradient of the cell before."""
    batch, size = d_c.shape
    for b in prange(batch):
        gate, d_gate = gates[b], d_gates[b]
        for j in range(size):
            i, f, g, o = gate[j], gate[size + j], gate[2 * size + j], gate[3 * size + j]
            d = read(d_outputs[b, j]) + read(d_h[b, j])
            d_cell = d_c[b, j] + d * o * (ONE - shown[b, j] * shown[b, j])
            write(d_gate, j, d_cell * g * i * (ONE - i))
            write(d_gate, size + j, d_cell * before[b, j] * f * (ONE - f))
            write(d_gate, 2 * size + j, d_cell * i * (ONE - g * g))
            write(d_gate, 3 * size + j, d * shown[b, j] * o * (ONE - o))
            d_c[b, j] = d_cell * f
