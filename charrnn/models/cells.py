"""One time step of each recurrent network, as its equations.

    B  streams side by side      x  (B, I)  input of this step
    I  input size                h  (B, H)  state: the output of a step, read again at the next
    H  hidden_size               c  (B, H)  cell of an LSTM: its memory, not part of the output
    G  gates: 1 in an RNN, 3 in a GRU, 4 in an LSTM

Weights are named and shaped as in torch's `nn.RNN`, `nn.GRU` and `nn.LSTM`, so that one state_dict serves all of them:
`weight_ih` (G·H, I), `weight_hh` (G·H, H), `bias_ih` and `bias_hh` (G·H,), the gates stacked in the order given below.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charrnn.config import EPS

State = Any  # h, or (h, c)

Cell = Callable[..., State]


def rnn_cell(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """Elman (1990), "Finding structure in time": the next h, `(B, H)`."""
    return torch.tanh(x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh)


def gru_cell(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """Cho et al. (2014, arXiv:1406.1078), gates r, z, n: the next h, `(B, H)`.

    The reset gate acts after the product with h, as in torch and cuDNN; the paper has it before.
    """
    r_x, z_x, n_x = (x @ weight_ih.T + bias_ih).chunk(3, dim=1)  # each (B, H)
    r_h, z_h, n_h = (h @ weight_hh.T + bias_hh).chunk(3, dim=1)
    r = torch.sigmoid(r_x + r_h)  # how much of the old state the candidate sees
    z = torch.sigmoid(z_x + z_h)  # how much of it is kept
    n = torch.tanh(n_x + r * n_h)  # the candidate
    return (1 - z) * n + z * h


def lstm_cell(
    x: Tensor, state: tuple[Tensor, Tensor], weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber (1997) with the forget gates of Gers et al. (2000), gates i, f, g, o: next h and c."""
    h, c = state
    i, f, g, o = (x @ weight_ih.T + bias_ih + h @ weight_hh.T + bias_hh).chunk(4, dim=1)  # each (B, H)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)  # keep some, add some
    h = torch.sigmoid(o) * torch.tanh(c)  # show some
    return h, c


def layer_norm_lstm_cell(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    gain_ih: Tensor,
    gain_hh: Tensor,
    gain_c: Tensor,
    bias_c: Tensor,
) -> tuple[Tensor, Tensor]:
    """LSTM with layer normalisation (Ba et al., 2016, arXiv:1607.06450, equations 20 to 22): the next h and c.

    Both products are normalised over all gates and scaled by `gain_ih` and `gain_hh` (4·H,); the plain `bias` (4·H,)
    is added after. The normalised cell goes into h only; the cell itself is carried as it is.
    """
    h, c = state
    products = normalise(x @ weight_ih.T) * gain_ih + normalise(h @ weight_hh.T) * gain_hh  # (B, 4H)
    i, f, g, o = (products + bias).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(normalise(c) * gain_c + bias_c)
    return h, c


def normalise(x: Tensor, eps: float = EPS) -> Tensor:
    """Each row of `x` `(B, N)` with mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def unroll(cell: Cell, inputs: Tensor, state: State, *weights: Tensor) -> tuple[Tensor, State]:
    """A cell over a whole sequence, step by step.

    Args:
        cell: one of the functions above.
        inputs: `(B, T, I)`, T at least 1.
        state: before the first step, `(B, H)` each.
        *weights: those of the cell, the same at every step.

    Returns:
        h after every step, `(B, T, H)`, a view of time-major memory as torch's layers give it; the state after the
        last.
    """
    outputs = []
    for x in inputs.unbind(dim=1):  # (B, I)
        state = cell(x, state, *weights)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs).transpose(0, 1), state
