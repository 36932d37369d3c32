"""Gradients that shrink or grow on their way back through a recurrence, and a cliff where they explode.

    h_t = f(W h_{t-1} + x_t),   f the identity or tanh

The Jacobian from a state to a later one is a product with one factor diag(f') W for each step between them, so its
size follows a power of W (Bengio et al., 1994; Pascanu et al., 2013, arXiv:1211.5063).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MATRICES = ("orthogonal", "gaussian")

RECURRENCES = ("linear", "tanh")


def recurrent_matrix(kind: str, hidden_size: int, radius: float, seed: int) -> Tensor:
    """Make a random `W (H, H)`, float64, whose largest eigenvalue has modulus `radius`.

    Args:
        kind: `orthogonal` rotates all directions and scales each by `radius`; `gaussian` has independent normal
            entries, and scales some directions far more than its eigenvalues suggest.
        hidden_size: H.
        radius: the spectral radius.
        seed: of the entries.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in MATRICES:
        raise ValueError(f"kind: expected one of {', '.join(MATRICES)}, got {kind!r}")
    matrix = torch.randn(hidden_size, hidden_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "orthogonal":
        return radius * torch.linalg.qr(matrix).Q
    return matrix * (radius / torch.linalg.eigvals(matrix).abs().max())


def gradient_norms(weight_hh: Tensor, lags: int, recurrence: str = "linear", seed: int = 0) -> Tensor:
    """Compute norms of the gradient of a number that depends on the last state, with respect to earlier states.

    The network reads normal inputs of standard deviation 0.1. The number is the last state's component in a random
    direction.

    Args:
        weight_hh: W, `(H, H)`.
        lags: the number of steps to go back, at least 1.
        recurrence: `linear` or `tanh`.
        seed: of inputs and direction.

    Returns:
        `(lags + 1,)`; entry k belongs to the state k steps before the last, so entry 0 is 1.

    Raises:
        ValueError: there is no such recurrence.
    """
    if recurrence not in RECURRENCES:
        raise ValueError(f"recurrence: expected one of {', '.join(RECURRENCES)}, got {recurrence!r}")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(lags + 1, len(weight_hh), generator=generator, dtype=weight_hh.dtype) * 0.1
    direction = torch.randn(len(weight_hh), generator=generator, dtype=weight_hh.dtype)
    states = [inputs[0].requires_grad_()]  # (H,) each
    for x in inputs[1:].detach():
        h = weight_hh @ states[-1] + x
        states.append(torch.tanh(h) if recurrence == "tanh" else h)
    number = direction @ states[-1] / direction.norm()
    gradients = torch.autograd.grad(number, states)
    return torch.stack([gradient.norm() for gradient in reversed(gradients)])


def log_slope(norms: Tensor | Sequence[float]) -> float:
    """Fit the growth of ln of `norms (K,)` from one lag to the next: the slope of the least-squares line."""
    logs = np.log(np.asarray(norms, dtype=np.float64))
    return float(np.polyfit(np.arange(len(logs)), logs, 1)[0])


# ----------------------------------------------------------------------------------------------------------- the cliff


def cliff_loss(weight: Tensor, bias: Tensor, steps: int = 50) -> Tensor:
    """Compute the loss of a network with one unit: (h + 0.5)² after `steps` of h = tanh(weight h + bias) from h = 0.9.

    The example of Pascanu et al. (2013), with tanh. `weight` and `bias` may have any shape, and the loss has the same.
    """
    h = torch.full_like(weight, 0.9)
    for _ in range(steps):
        h = torch.tanh(weight * h + bias)
    return (h + 0.5) ** 2
