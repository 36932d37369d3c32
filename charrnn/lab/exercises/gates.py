"""Exercises of notebook 04."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from charrnn.lab.exercises.exercise import Exercise, randn
from charrnn.models.cells import gru_cell, normalise

GATES: dict[str, Exercise] = {}


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight: Tensor,
    bias: Tensor,
    order: str = "ifgo",
    joined: Callable[[Tensor, Tensor], Tensor] = lambda x, h: torch.cat([x, h], dim=1),
    candidate: Callable[[Tensor], Tensor] = torch.tanh,
    shown: Callable[[Tensor], Tensor] = torch.tanh,
) -> tuple[Tensor, Tensor]:
    """Take a step of an LSTM with a single weight matrix for input and state; the options are possible mistakes."""
    parts = dict(zip(order, (joined(x, h) @ weight.T + bias).chunk(4, dim=1), strict=True))
    i, f, o = (torch.sigmoid(parts[name]) for name in "ifo")
    c = f * c + i * candidate(parts["g"])
    return o * shown(c), c


GATES["lstm_step"] = Exercise(
    task=(
        "Take x (B, I), h and c (B, H), weight (4H, I + H) and bias (4H,); join x and h, in this order, multiply once, "
        "split into the gates i, f, g, o, and return the next h and c, (B, H) each."
    ),
    solution=lstm_step,
    mistakes={
        "the four parts are not in the order i, f, g, o; look at the line that splits the product.": partial(
            lstm_step, order="ifog"
        ),
        "the wrong gate acts on the old cell; which one decides what to keep, and which what to let in?": partial(
            lstm_step, order="figo"
        ),
        "h uses the cell unchanged; a function has to bound it between -1 and 1 before the output gate.": partial(
            lstm_step, shown=lambda c: c
        ),
        "g is not a gate but the value written into the cell, and it can be negative: a sigmoid is the wrong squashing "
        "function for it.": partial(lstm_step, candidate=torch.sigmoid),
        "g goes through a sigmoid before its tanh, so it is never negative: split first, and give each of the four its "
        "own squashing function.": partial(lstm_step, candidate=lambda g: torch.tanh(torch.sigmoid(g))),
        "you join h before x; the first I columns of the weight belong to the input.": partial(
            lstm_step, joined=lambda x, h: torch.cat([h, x], dim=1)
        ),
        "h and c are returned in the wrong order.": lambda *a: lstm_step(*a)[::-1],
        "h and c are stacked into one tensor; return them as a tuple.": lambda *a: torch.stack(lstm_step(*a)),
    },
    cases=lambda: [
        tuple(randn((2, 3), (2, 4), (2, 4), (16, 7), (16,), seed=1)),
        tuple(randn((5, 1), (5, 2), (5, 2), (8, 3), (8,), seed=2)),
    ],
)


# ------------------------------------------------------------------------------------------------------------- gru_step


def gru_step(
    x: Tensor,
    h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    order: str = "rzn",
    variant: str = "right",
) -> Tensor:
    """Take a step of torch's GRU; the options are possible mistakes."""
    H = h.shape[1]  # noqa: N806
    x_parts = dict(zip(order, (x @ weight_ih.T + bias_ih).chunk(3, dim=1), strict=True))
    h_parts = dict(zip(order, (h @ weight_hh.T + bias_hh).chunk(3, dim=1), strict=True))
    r, z = (torch.sigmoid(x_parts[name] + h_parts[name]) for name in "rz")
    b = bias_hh[2 * H :]
    recalled = {
        "right": r * h_parts["n"],
        "reset before": (r * h) @ weight_hh[2 * H :].T + b,
        "bias outside": r * (h_parts["n"] - b) + b,
        "no reset": h_parts["n"],
        "z swapped": r * h_parts["n"],
        "sigmoid": r * h_parts["n"],
    }[variant]
    n = (torch.sigmoid if variant == "sigmoid" else torch.tanh)(x_parts["n"] + recalled)
    return z * n + (1 - z) * h if variant == "z swapped" else (1 - z) * n + z * h


GATES["gru_step"] = Exercise(
    task=(
        "Take x (B, I), h (B, H), weight_ih (3H, I), weight_hh (3H, H), bias_ih and bias_hh (3H,), the gates in the "
        "order r, z, n; return the next h (B, H) of torch's GRU."
    ),
    solution=gru_cell,
    mistakes={
        "z and 1 - z are swapped; with z = 1 the old state should stay as it is.": partial(
            gru_step, variant="z swapped"
        ),
        "the reset gate acts on h before the product, as in the paper; in torch it acts on the product.": partial(
            gru_step, variant="reset before"
        ),
        "the reset gate misses a bias; what does r multiply besides the product with h?": partial(
            gru_step, variant="bias outside"
        ),
        "the reset gate has no effect on the candidate, where it belongs.": partial(gru_step, variant="no reset"),
        "n is not a gate but the candidate, and it can be negative: a sigmoid is the wrong squashing function.": (
            partial(gru_step, variant="sigmoid")
        ),
        "reset and update are swapped; look at the order in which the parts are stacked.": partial(
            gru_step, order="zrn"
        ),
    },
    cases=lambda: [
        tuple(randn((2, 3), (2, 4), (12, 3), (12, 4), (12,), (12,), seed=3)),
        tuple(randn((4, 5), (4, 2), (6, 5), (6, 2), (6,), (6,), seed=4)),
    ],
)


# ----------------------------------------------------------------------------------------------------- count_parameters


def count_parameters(
    kind: str,
    vocab_size: int,
    embedding_dim: int,
    hidden_size: int,
    num_layers: int,
    gates: Callable[[str], int] = lambda kind: {"rnn": 1, "gru": 3, "lstm": 4}[kind],
    biases: int = 2,
    inputs: bool = True,
    upper_inputs: bool = True,
    recurrent: bool = True,
    ends: bool = True,
) -> int:
    """Count the parameters of a model; the options are possible mistakes."""
    G, E, H, total = gates(kind), embedding_dim, hidden_size, 0  # noqa: N806
    for layer in range(num_layers):
        width = E if layer == 0 or not upper_inputs else H
        total += G * H * width * inputs + (G if recurrent else 1) * H * H + biases * G * H
    return total + ends * (vocab_size * E) + H * vocab_size + ends * vocab_size


GATES["count_parameters"] = Exercise(
    task=(
        "Take kind ('rnn', 'gru' or 'lstm'), vocab_size, embedding_dim, hidden_size and num_layers; return the number "
        "of parameters of the model: embedding, layers, head."
    ),
    solution=count_parameters,
    mistakes={
        "each gate has two biases, one for each product, as in torch.": partial(count_parameters, biases=1),
        "the weights that read a layer's input are missing.": partial(count_parameters, inputs=False),
        "only the lowest layer reads the embedding; what do the others read, and how wide is it?": partial(
            count_parameters, upper_inputs=False
        ),
        "the recurrent weights are counted once for all gates; each gate has its own.": partial(
            count_parameters, recurrent=False
        ),
        "an LSTM has as many parts as its product is split into: three gates and one more.": partial(
            count_parameters, gates=lambda kind: {"rnn": 1, "gru": 3, "lstm": 3}[kind]
        ),
        "the layers are right, but two parts at the ends of the model are missing: the one that turns a token into a "
        "vector, and the one added to the logits.": partial(count_parameters, ends=False),
    },
    cases=lambda: [
        ("lstm", 70, 70, 384, 1),
        ("lstm", 70, 16, 128, 2),
        ("gru", 50, 20, 64, 3),
        ("rnn", 10, 7, 5, 2),
    ],
)


# ----------------------------------------------------------------------------------------------------------- layer_norm


def layer_norm(
    x: Tensor, gain: Tensor, bias: Tensor, eps: float, dim: Any = 1, correction: int = 0, variant: str = "right"
) -> Tensor:
    """Normalise each row; the options are possible mistakes."""
    if variant == "gain before":
        x = x * gain
    mean = x.mean() if dim is None else x.mean(dim=dim, keepdim=True)
    var = ((x - mean) ** 2).mean() if dim is None else x.var(dim=dim, correction=correction, keepdim=True)
    scale = {"eps outside": var.sqrt() + eps, "no root": var + eps}.get(variant, (var + eps).sqrt())
    normal = (x - mean) / scale
    return normal + bias if variant == "gain before" else normal * gain + bias


GATES["layer_norm"] = Exercise(
    task=(
        "Take x (B, N), gain and bias (N,), and the number eps; return (B, N): each row shifted and scaled to mean 0 "
        "and variance 1 (eps is added to the variance), then times gain, plus bias."
    ),
    solution=lambda x, gain, bias, eps: normalise(x, eps) * gain + bias,
    mistakes={
        "you take mean and variance over the batch, which is batch normalisation; here each row is on its own.": (
            partial(layer_norm, dim=0)
        ),
        "you use one mean and one variance for the whole batch; each row has its own.": partial(layer_norm, dim=None),
        "the variance is a little too large: it divides by N - 1, which is the default of torch's var and std.": (
            partial(layer_norm, correction=1)
        ),
        "eps is in the wrong place: add it to the variance, under the root.": partial(
            layer_norm, variant="eps outside"
        ),
        "each row is divided by its variance; the square root is missing.": partial(layer_norm, variant="no root"),
        "the gain acts before the normalisation, which undoes a part of it.": partial(
            layer_norm, variant="gain before"
        ),
    },
    cases=lambda: [
        (*randn((3, 8), (8,), (8,), seed=5), 1e-5),
        (*(0.1 * t for t in randn((4, 5), (5,), (5,), seed=6)), 0.1),
    ],
)


# ----------------------------------------------------------------------------------------------------------- bias_for


def bias_for(steps: float) -> float:
    """Compute the forget bias that leaves half of a cell after this many steps."""
    kept = 0.5 ** (1 / steps)
    return math.log(kept / (1 - kept))


GATES["bias_for"] = Exercise(
    task=(
        "Take a number of steps; return the bias b of a forget gate σ(b) that leaves half of the cell after that "
        "many steps."
    ),
    solution=bias_for,
    mistakes={
        "that is the value of the gate; which bias gives this value after the sigmoid?": lambda steps: (
            0.5 ** (1 / steps)
        ),
        "that bias leaves 1/e of the cell after that many steps, not a half.": lambda steps: (
            -math.log(math.expm1(1 / steps))
        ),
        "that gate forgets what it should keep; look at the sign.": lambda steps: -bias_for(steps),
        "your gate is 1 - 0.5 / steps, as if it removed the same amount at each step; it removes the same share.": (
            lambda steps: math.log((1 - 0.5 / steps) / (0.5 / steps))
        ),
    },
    cases=lambda: [(2.0,), (20.0,), (200.0,)],
)
