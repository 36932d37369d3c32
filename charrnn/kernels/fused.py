"""Recurrences over a whole sequence with their backward pass derived by hand: the fast twins of `models.cells`.

    outputs, state = lstm(inputs, state, weight_ih, weight_hh, bias_ih, bias_hh)

equals `unroll(lstm_cell, ...)`, and likewise `rnn`, `gru` and `layer_norm_lstm`. Autograd records every operation of
every step and plays the record backwards, operation by operation. By hand, most of that work leaves the loop:

1. *The input product.* x W_ih^T of all steps is one large product before the loop. Where the inputs are rows of an
   embedding, W_ih is multiplied with the V different rows once, and each token looks its product up.
2. *The local factors.* With a_t = products_t + h_{t-1} W_hh^T the inputs of the gates and L the loss, the chain rule
   says dL/da_t = dL/dh_t * F_t. F_t, the derivatives of the gates, is known after the forward pass: it is computed for
   all steps at once. Only the carry stays in the loop:

       dL/dh_{t-1} = dL/dh_{t-1} from the outputs + dL/da_t W_hh + (what the cell passes on directly)

3. *The weight's gradient.* dL/dW_hh = sum over t of dL/da_t^T h_{t-1}: one large product after the loop.

In each derivation below `d_x` stands for dL/dx. Tensors are time-major, `(T, B, N)`, and gates are kept as
`(T, G, B, H)`: each gate of a step is one block of memory, on which framework calls are faster than on stripes. Under
autocast the factors of the products are in half precision where that is faster. Everything else, including the state,
stays fp32.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from charrnn.config import EPS

Gradients = tuple[Tensor | None, ...]

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # (d, s) -> d * s * (1 - s), in one pass over memory

tanh_backward = torch.ops.aten.tanh_backward.grad_input  # (d, t) -> d * (1 - t^2)

norm_backward = torch.ops.aten.native_layer_norm_backward.default

SMALL = 256  # smaller hidden sizes gain nothing from half precision inside the loop


def rnn(inputs: Tensor, state: Tensor, *weights: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`rnn_cell` over a whole sequence.

    Args:
        inputs: `(B, T, I)`; with `tokens`, an embedding `(V, I)`.
        state: h before the first step, `(B, H)`.
        *weights: those of the cell.
        tokens: rows of `inputs` to read, `(B, T)`.

    Returns:
        h after every step, `(B, T, H)`, and the state after the last. The first may be a view of time-major memory.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    products = _look_up(input_products(inputs, weight_ih, bias_ih + bias_hh, tokens), tokens)
    outputs: Tensor = _recur(_RNN, products, (state,), weight_hh)
    return outputs.transpose(0, 1), outputs[-1].clone()


def gru(inputs: Tensor, state: Tensor, *weights: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`gru_cell` over a whole sequence; arguments and results as in `rnn`."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    bias_r, bias_z, bias_n = bias_hh.chunk(3)
    bias = bias_ih + torch.cat([bias_r, bias_z, torch.zeros_like(bias_n)])  # that of n stays inside, behind r
    products = _look_up(input_products(inputs, weight_ih, bias, tokens), tokens)
    outputs: Tensor = _recur(_GRU, products, (state,), weight_hh, bias_n)
    return outputs.transpose(0, 1), outputs[-1].clone()


def lstm(
    inputs: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor, tokens: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm_cell` over a whole sequence; arguments and results as in `rnn`, with the state (h, c)."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    products = _look_up(input_products(inputs, weight_ih, bias_ih + bias_hh, tokens), tokens)
    outputs, c = _recur(_LSTM, products, state, weight_hh)
    return outputs.transpose(0, 1), (outputs[-1].clone(), c)


def layer_norm_lstm(
    inputs: Tensor, state: tuple[Tensor, Tensor], *weights: Tensor, tokens: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`layer_norm_lstm_cell` over a whole sequence; arguments and results as in `lstm`."""
    weight_ih, weight_hh, bias, gain_ih, gain_hh, gain_c, bias_c = weights
    products = input_products(inputs, weight_ih, None, tokens)
    products = _look_up(F.layer_norm(products, gain_ih.shape, gain_ih, bias, EPS), tokens)
    outputs, c = _recur(_LSTM, products, state, weight_hh, gain_hh, gain_c, bias_c)
    return outputs.transpose(0, 1), (outputs[-1].clone(), c)


# ------------------------------------------------------------------------------------------------- the input product


def input_products(inputs: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor | None) -> Tensor:
    """The input product of every step `(T, B, G·H)`, or of every token in the vocabulary `(V, G·H)`."""
    if tokens is None:
        return F.linear(inputs.transpose(0, 1), weight, bias)
    with torch.autocast(inputs.device.type, enabled=False):  # a small product that every step depends on
        return F.linear(inputs, weight, bias)


def _look_up(products: Tensor, tokens: Tensor | None) -> Tensor:
    return products if tokens is None else F.embedding(tokens.t(), products)  # (T, B, G·H)


# ------------------------------------------------------------------------------------------------------ shared parts


def _recur(
    function: type[Function], products: Tensor, state: tuple[Tensor, ...], weight_hh: Tensor, *others: Tensor
) -> Any:
    """Apply `function`, with the type that the factors of its large products have: half precision under autocast."""
    device = products.device.type
    single = weight_hh.dtype == torch.float32  # autocast leaves doubles alone
    half = torch.get_autocast_dtype(device) if single and torch.is_autocast_enabled(device) else None
    apply: Callable[..., Any] = function.apply
    with torch.autocast(device, enabled=False):
        return apply(products, *(h.to(weight_hh.dtype) for h in state), weight_hh, half, *others)


def _in_loop(weight: Tensor, half: torch.dtype | None) -> Tensor:
    """W_hh for the product of a single step."""
    return weight if half is None or weight.shape[1] < SMALL else weight.to(half)


def _with_room(initial: Tensor, steps: int) -> Tensor:
    """A state before the first step and after each: `(T + 1, B, H)`, all but the first still empty."""
    states = initial.new_empty(steps + 1, *initial.shape)
    states[0] = initial
    return states


def _by_gate(gates: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of each step's gates in `gates` `(T, G, B, H)`: all together, the first two together, then each alone."""
    views = (gates.transpose(1, 2), gates[:, :2], *gates.unbind(1))  # all together stand as (B, G, H)
    return zip(*(view.unbind(0) for view in views), strict=True)


def _times(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of `x` and `weight`, the factors in the precision of `weight`, in `dtype`."""
    return (x.to(weight.dtype) @ weight).to(dtype)  # mixing precisions below would be slower


def _plus_product(total: Tensor, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """The sum of `total` and x weight, the factors in the precision of `weight`."""
    if total.dtype == weight.dtype:
        return torch.addmm(total, x, weight, out=out)
    return torch.add(total, _times(x, weight, total.dtype), out=out)


def _weight_gradient(d_products: Tensor, states: Tensor, half: torch.dtype | None) -> Tensor:
    """dL/dW_hh `(G·H, H)`: the `d_products` `(T, B, G·H)` of every step times the state before it."""
    dtype = half or states.dtype
    before = states[:-1].flatten(0, 1).to(dtype)  # (T·B, H)
    return (d_products.flatten(0, 1).to(dtype).t() @ before).to(states.dtype)


def _with_first(d_outputs: Tensor) -> list[Tensor]:
    """dL/dh from the outputs for every step and, before them, for the initial state, which has no output."""
    return [torch.zeros_like(d_outputs[0]), *d_outputs.unbind(0)]


# -------------------------------------------------------------------------------------------------------------- RNN


class _RNN(Function):
    """h_t = tanh(a_t), a_t = products_t + h_{t-1} W_hh^T.

    Backward: d_a = d_h * (1 - h^2).
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, h0: Tensor, weight_hh: Tensor, half: torch.dtype | None) -> Tensor:
        states = _with_room(h0, len(products))
        weight = _in_loop(weight_hh, half).t().contiguous()
        h, *outputs = states.unbind(0)
        for product, output in zip(products.to(h0.dtype).unbind(0), outputs, strict=True):
            h = torch.tanh(_plus_product(product, h, weight), out=output)
        ctx.save_for_backward(states, weight_hh)
        ctx.half, ctx.dtype = half, products.dtype
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> Gradients:
        states, weight_hh = ctx.saved_tensors
        weight = _in_loop(weight_hh, ctx.half)
        d_products = torch.empty_like(states[1:], dtype=weight.dtype)  # (T, B, H)
        factors = (1 - states[1:] * states[1:]).unbind(0)
        d_hs, d_as = _with_first(d_outputs), d_products.unbind(0)
        d_h = d_hs[-1]
        for t in reversed(range(len(d_as))):
            torch.mul(d_h, factors[t], out=d_as[t])
            d_h = _plus_product(d_hs[t], d_as[t], weight)
        d_weight = _weight_gradient(d_products, states, ctx.half)
        return d_products.to(ctx.dtype), d_h, d_weight, None


# -------------------------------------------------------------------------------------------------------------- GRU


class _GRU(Function):
    """r = sigmoid(a_r), z = sigmoid(a_z), n = tanh(products_n + r * m); h_t = (1 - z) * n + z * h_{t-1}.

    m = h_{t-1} W_n^T + b_n is the part of the candidate that r lets through. Backward:

        d_n = d_h * (1 - z)          d_(a_n) = d_n * (1 - n^2)
        d_z = d_h * (h_{t-1} - n)    d_(a_z) = d_z * z * (1 - z)
        d_r = d_(a_n) * m            d_(a_r) = d_r * r * (1 - r)
        d_m = d_(a_n) * r            and directly to h_{t-1}: d_h * z
    """

    @staticmethod
    def forward(
        ctx: Any, products: Tensor, h0: Tensor, weight_hh: Tensor, half: torch.dtype | None, bias_n: Tensor
    ) -> Tensor:
        states = _with_room(h0, len(products))
        gates = h0.new_empty(len(products), 4, *h0.shape)  # r, z, n, m
        weight = _in_loop(weight_hh, half).t().contiguous()
        h, *outputs = states.unbind(0)
        inputs = products.to(h0.dtype).view(*products.shape[:2], 3, -1).unbind(0)
        for x, (_, r_z, r, z, n, m), output in zip(inputs, _by_gate(gates), outputs, strict=True):
            product = _times(h, weight, h.dtype).view_as(x)
            torch.add(x[:, :2].transpose(0, 1), product[:, :2].transpose(0, 1), out=r_z).sigmoid_()
            torch.add(product[:, 2], bias_n, out=m)
            torch.addcmul(x[:, 2], r, m, out=n).tanh_()
            h = torch.lerp(n, h, z, out=output)
        ctx.save_for_backward(gates, states, weight_hh)
        ctx.half, ctx.dtype = half, products.dtype
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> Gradients:
        gates, states, weight_hh = ctx.saved_tensors
        weight = _in_loop(weight_hh, ctx.half)
        steps, batch, hidden = d_outputs.shape
        d_products = gates.new_empty(steps, batch, 3, hidden, dtype=weight.dtype)  # d_(a_r), d_(a_z), d_m
        by_gate, flat = d_products.transpose(1, 2).unbind(0), d_products.flatten(2).unbind(0)
        kept = gates[:, 1].unbind(0)
        d_states = torch.cat([torch.zeros_like(states[:1]), d_outputs])  # from the outputs; the loop adds the rest
        d_hs = d_states.unbind(0)
        to_n, factors = _GRU.factors(gates, states[:-1])
        for t, factor in reversed(list(enumerate(factors))):
            torch.mul(d_hs[t + 1], factor, out=by_gate[t])
            d_hs[t].addcmul_(d_hs[t + 1], kept[t])
            _plus_product(d_hs[t], flat[t], weight, out=d_hs[t])
        d_weight = _weight_gradient(d_products.flatten(2), states, ctx.half)
        d_bias = d_products[:, :, 2].sum((0, 1), dtype=states.dtype)
        torch.mul(d_states[1:], to_n, out=d_products[:, :, 2])  # the input's part of n is not behind r
        return d_products.flatten(2).to(ctx.dtype), d_hs[0], d_weight, None, d_bias

    @staticmethod
    def factors(gates: Tensor, before: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The factors of d_h in d_(a_n) `(T, B, H)`; of each step, in d_(a_r), d_(a_z), d_m `(3, B, H)`."""
        r, z, n, m = gates.unbind(1)
        to_n = tanh_backward(1 - z, n, grad_input=torch.empty_like(n))
        factors = torch.empty_like(gates[:, :3])
        to_r, to_z, to_m = factors.unbind(1)
        sigmoid_backward(to_n * m, r, grad_input=to_r)
        sigmoid_backward(before - n, z, grad_input=to_z)
        torch.mul(to_n, r, out=to_m)
        return to_n, factors.unbind(0)


# ------------------------------------------------------------------------------------------------------------- LSTM


class _LSTM(Function):
    """i, f, g, o = gates of a_t; c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t).

    Backward, where d_c starts as the gradient that later cells passed on:

        d_c += d_h * o * (1 - tanh(c)^2)
        d_(a_i) = d_c * g * i * (1 - i)          d_(a_g) = d_c * i * (1 - g^2)
        d_(a_f) = d_c * c_{t-1} * f * (1 - f)    d_(a_o) = d_h * tanh(c) * o * (1 - o)
        and to c_{t-1}: d_c * f

    With gains, layer-normalised (Ba et al., 2016): a_t = products_t + LN(h_{t-1} W_hh^T) * gain_hh and
    h_t = o * tanh(y), y = LN(c_t) * gain_c + bias_c. With LN(x) = (x - mean) * rstd, the backward of y = LN(x) is
    d_x = rstd * (d_y - mean(d_y) - y * mean(d_y * y)).
    """

    @staticmethod
    def forward(
        ctx: Any, products: Tensor, h0: Tensor, c0: Tensor, weight_hh: Tensor, half: torch.dtype | None, *norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        states, cells = _with_room(h0, len(products)), _with_room(c0, len(products))
        gates = h0.new_empty(len(products), 4, *h0.shape)
        shown = torch.empty_like(cells[1:])  # tanh(c), or tanh(y)
        weight = _in_loop(weight_hh, half).t().contiguous()
        norms = []  # of each step: h W_hh^T, its mean, 1 / its standard deviation; the mean and the like of c
        h, *outputs = states.unbind(0)
        c, *cs = cells.unbind(0)
        inputs = products.to(h0.dtype).view(*products.shape[:2], 4, -1).unbind(0)
        steps = zip(inputs, _by_gate(gates), shown.unbind(0), cs, outputs, strict=True)
        for x, (all_gates, i_f, i, f, g, o), show, next_c, output in steps:
            product = _times(h, weight, h.dtype)
            a = product
            if norm:
                a, *of_product = torch.native_layer_norm(product, norm[0].shape, norm[0], None, EPS)
            torch.add(x, a.view_as(x), out=all_gates)
            i_f.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            y = c = torch.mul(f, c, out=next_c).addcmul_(i, g)
            if norm:
                y, *of_cell = torch.native_layer_norm(c, norm[1].shape, norm[1], norm[2], EPS)
                norms.append((product, *of_product, *of_cell))
            h = torch.mul(o, torch.tanh(y, out=show), out=output)
        moments = [torch.stack(parts) for parts in zip(*norms, strict=True)]
        ctx.save_for_backward(gates, cells, shown, states, weight_hh, *norm[:2], *moments)
        ctx.half, ctx.dtype = half, products.dtype
        return states[1:], c.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_c: Tensor) -> Gradients:
        gates, cells, shown, states, weight_hh, *norm = ctx.saved_tensors
        weight = _in_loop(weight_hh, ctx.half)
        steps, batch, hidden = d_outputs.shape
        d_products = gates.new_empty(steps, batch, 4, hidden, dtype=None if norm else weight.dtype)
        d_recurrent = d_products.flatten(2)  # of h W_hh^T
        d_i_f_g, d_o = d_products[:, :, :3].transpose(1, 2).unbind(0), d_products[:, :, 3].unbind(0)
        flat, kept, d_hs = d_recurrent.unbind(0), gates[:, 1].unbind(0), _with_first(d_outputs)
        if norm:
            gain_hh, gain_c, *moments = norm
            d_recurrent = torch.empty_like(d_recurrent, dtype=weight.dtype)
            of_product, of_cell, d_y = moments[:3], (cells[1:], *moments[3:]), torch.empty_like(shown)
        d_as, d_h, d_c = d_recurrent.unbind(0), d_hs[-1], d_c.clone()
        for t, (to_y, to_i_f_g, to_o) in reversed(list(enumerate(_cell_factors(gates, cells[:-1], shown)))):
            if norm:
                d_c.add_(_through_norm(torch.mul(d_h, to_y, out=d_y[t]), t, of_cell, gain_c))
            else:
                d_c.addcmul_(d_h, to_y)
            torch.mul(d_c, to_i_f_g, out=d_i_f_g[t])
            torch.mul(d_h, to_o, out=d_o[t])
            if norm:
                d_as[t].copy_(_through_norm(flat[t], t, of_product, gain_hh))
            d_h = _plus_product(d_hs[t], d_as[t], weight)
            d_c.mul_(kept[t])
        d_weight = _weight_gradient(d_recurrent, states, ctx.half)
        d_gains: Gradients = ()
        if norm:
            d_gain_hh = (d_products.flatten(2) * _normalised(*of_product)).sum((0, 1))
            d_gains = d_gain_hh, (d_y * _normalised(*of_cell)).sum((0, 1)), d_y.sum((0, 1))
        return d_products.flatten(2).to(ctx.dtype), d_h, d_c, d_weight, None, *d_gains


def _cell_factors(gates: Tensor, before: Tensor, shown: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of each step: the factor of d_h in d_y; of d_c in d_(a_i), d_(a_f), d_(a_g) `(3, B, H)`; of d_h in d_(a_o)."""
    i, f, g, o = gates.unbind(1)
    factors = torch.empty_like(gates)
    to_i, to_f, to_g, to_o = factors.unbind(1)
    sigmoid_backward(g, i, grad_input=to_i)
    sigmoid_backward(before, f, grad_input=to_f)
    tanh_backward(i, g, grad_input=to_g)
    sigmoid_backward(shown, o, grad_input=to_o)
    to_y = tanh_backward(o, shown, grad_input=torch.empty_like(shown))
    return zip(to_y.unbind(0), factors[:, :3].unbind(0), to_o.unbind(0), strict=True)


def _through_norm(d: Tensor, t: int, normed: Sequence[Tensor], gain: Tensor) -> Tensor:
    """d_x of LN(x) * gain at step t; `normed` are x `(T, B, N)`, its mean, and 1 / its standard deviation."""
    x, mean, rstd = (part[t] for part in normed)
    d_x: Tensor = norm_backward(d, x, gain.shape, mean, rstd, gain, None, [True, False, False])[0]
    return d_x


def _normalised(x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """LN(x) of every step, `(T, B, N)`."""
    return (x - mean) * rstd
