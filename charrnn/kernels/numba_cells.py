"""The LSTM over a whole sequence on a CPU, its loops compiled by numba: what the other paths lose between calls.

    outputs, (h, c) = lstm(inputs, (h, c), weight_ih, weight_hh, bias_ih, bias_hh, tokens=None)

gives what `kernels.lstm` gives, by the same equations. There a step is a product and a dozen passes over memory, each a
framework call. Here it is the product and one pass: for each stream, what the step before and the token bring is read
once, all that a unit does is computed in registers, and what backward needs is written once. The streams are shared out
over the processor's cores. Weights and cell are fp32; under autocast the products have bf16 factors, which a processor
without the type reads as the upper half of a float.
"""

import functools
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange, types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from charrnn.kernels.cache import OPTIONS, kept
from charrnn.kernels.numba_math import ALONE, ONE, bits_to_float, float_to_bits, sigmoid, tanh


def lstm(
    inputs: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    tokens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm_cell` over a whole sequence; arguments and results as in `kernels.lstm`, but fp32 on a CPU.

    Under autocast to bf16 the outputs are bf16, as those of `nn.LSTM` are.
    """
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    bias = bias_ih + bias_hh
    if tokens is None:  # a row of products for each step of each stream
        rows = F.linear(inputs.transpose(0, 1), weight_ih, bias).flatten(0, 1)
        places = torch.arange(len(rows)).view(inputs.shape[1], inputs.shape[0])
    else:  # a row for each token there is
        if not (tokens.min() >= 0 and tokens.max() < len(inputs)):
            raise IndexError(f"expected tokens from 0 to {len(inputs) - 1}, got {tokens.min()} to {tokens.max()}")
        with torch.autocast("cpu", enabled=False):
            rows = F.linear(inputs, weight_ih, bias)
        places = tokens.t().contiguous()
    _launch_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    outputs, h, c = _LSTM.apply(rows, places, tokens is None, *state, weight_hh, torch.bfloat16 if half else None)
    return outputs.transpose(0, 1), (h, c)


@functools.cache
def _launch_threads() -> None:
    """Launch numba's threads. This sets the number of threads of OpenMP, so of PyTorch, to all cores: undo that."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)


@functools.cache
def prepare() -> None:
    """Compile the forward and the backward pass, or load them, by a run of both: if something fails, it fails here."""
    with torch.inference_mode(False), torch.enable_grad():
        weight, bias = torch.zeros(4, 1, device="cpu", requires_grad=True), torch.zeros(4, device="cpu")
        zero = torch.zeros(1, 1, device="cpu")
        outputs, _ = lstm(zero[None], (zero, zero), weight, weight, bias, bias)
        outputs.sum().backward()


class _LSTM(Function):
    """The recurrence; `places` `(T, B)` says which of `rows` `(N, 4H)` is the input product of a step of a stream.

    The equations of backward are those of `kernels._LSTM`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        places: Tensor,
        distinct: bool,
        h0: Tensor,
        c0: Tensor,
        weight_hh: Tensor,
        half: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (steps, batch), hidden = places.shape, weight_hh.shape[1]
        dtype = half or weight_hh.dtype
        states = torch.empty(steps + 1, batch, hidden, dtype=dtype)
        cells = torch.empty(steps + 1, batch, hidden)
        states[0], cells[0] = h0, c0
        gates, shown = torch.empty(steps, batch, 4 * hidden), torch.empty(steps, batch, hidden)  # shown: tanh(c)
        product = torch.empty(batch, 4 * hidden, dtype=dtype)
        weight = weight_hh.to(dtype).t().contiguous()
        arrays = [_array(tensor) for tensor in (rows.contiguous(), places, product, cells, gates, shown, states)]
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
        arrays = [_array(tensor) for tensor in (d_outputs, d_h, d_c, gates, shown, cells, d_gates)]
        d_out, carried, d_cell, gate, show, c, d_gate = arrays
        for t in range(len(places) - 1, -1, -1):
            with ALONE:
                _step_backward(d_out[t], carried, d_cell, gate[t], show[t], c[t], d_gate[t])
            torch.mm(d_gates[t], weight, out=d_h)
        d_gates = d_gates.flatten(0, 1)  # (T B, 4H)
        d_weight = d_gates.t() @ states[:-1].flatten(0, 1)
        d_rows = d_gates if ctx.distinct else _summed(d_gates, places.flatten(), len(ctx.rows))
        return d_rows.to(ctx.rows.dtype), None, None, d_h.to(d_c.dtype), d_c, d_weight.to(weight_hh.dtype), None


def _summed(d_gates: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """The sum of the rows of `d_gates` `(N, 4H)` that belong to each token, `(V, 4H)`."""
    if vocab_size > 512:
        return torch.zeros(vocab_size, d_gates.shape[1]).index_add_(0, tokens, d_gates.float())
    return F.one_hot(tokens, vocab_size).to(d_gates.dtype).t() @ d_gates  # a product is faster than its equal in sums


def _array(tensor: Tensor) -> NDArray[Any]:
    """The memory of `tensor` as numpy sees it; numpy has no bf16, so these are their 16 bits."""
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


# ------------------------------------------------------------------------------------------------ what numba compiles


def _read(number):
    """An entry of an array of fp32, or of the bits of bf16, as fp32."""


@overload(_read, inline="always")
def _compiled_read(number):
    if isinstance(number, types.Integer):
        return lambda number: bits_to_float(np.uint32(number) << np.uint32(16))
    return lambda number: number


def _write(array, j, number):
    """Put `number` into an array of fp32, or rounded to the nearest into one of the bits of bf16."""


@overload(_write, inline="always")
def _compiled_write(array, j, number):
    if isinstance(array.dtype, types.Integer):

        def rounded(array, j, number):
            bits = float_to_bits(number)
            tie_to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            array[j] = np.uint16((bits + tie_to_even) >> np.uint32(16))

        return rounded

    def exact(array, j, number):
        array[j] = number

    return exact


# Loops of their own over few arrays: a compiler turns such into vector instructions.


@njit(**OPTIONS)
def _open(gate, row, product, start, end):
    for j in range(start, end):
        gate[j] = sigmoid(_read(row[j]) + _read(product[j]))


@njit(**OPTIONS)
def _propose(gate, row, product, start, end):
    for j in range(start, end):
        gate[j] = tanh(_read(row[j]) + _read(product[j]))


@njit(**OPTIONS)
def _remember(gate, before, c, shown, h):
    size = len(c)
    for j in range(size):
        c[j] = gate[size + j] * before[j] + gate[j] * gate[2 * size + j]
    for j in range(size):
        shown[j] = tanh(c[j])
    for j in range(size):
        _write(h, j, gate[3 * size + j] * shown[j])


@kept(parallel=True)
def _step(rows, places, products, before, gates, c, shown, h):
    """One step of every stream."""
    batch, size = c.shape
    for b in prange(batch):
        row, product, gate = rows[places[b]], products[b], gates[b]
        _open(gate, row, product, 0, 2 * size)
        _propose(gate, row, product, 2 * size, 3 * size)
        _open(gate, row, product, 3 * size, 4 * size)
        _remember(gate, before[b], c[b], shown[b], h[b])


@kept(parallel=True)
def _step_backward(d_outputs, d_h, d_c, gates, shown, before, d_gates):
    """One step backward of every stream; `d_c` becomes what is passed on to the cell before."""
    batch, size = d_c.shape
    for b in prange(batch):
        gate, d_gate = gates[b], d_gates[b]
        for j in range(size):
            i, f, g, o = gate[j], gate[size + j], gate[2 * size + j], gate[3 * size + j]
            d = _read(d_outputs[b, j]) + _read(d_h[b, j])
            d_cell = d_c[b, j] + d * o * (ONE - shown[b, j] * shown[b, j])
            _write(d_gate, j, d_cell * g * i * (ONE - i))
            _write(d_gate, size + j, d_cell * before[b, j] * f * (ONE - f))
            _write(d_gate, 2 * size + j, d_cell * i * (ONE - g * g))
            _write(d_gate, 3 * size + j, d * shown[b, j] * o * (ONE - o))
            d_c[b, j] = d_cell * f
