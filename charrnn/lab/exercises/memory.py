"""Exercises of notebook 03."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from charrnn.lab.exercises.exercise import Exercise, randn

MEMORY: dict[str, Exercise] = {}


def state_jacobian(weight_hh: Tensor, h: Tensor) -> Tensor:
    """Compute the Jacobian; row i, column j says how h_t[i] changes with h_{t-1}[j]."""
    return (1 - h**2)[:, None] * weight_hh


MEMORY["state_jacobian"] = Exercise(
    task=(
        "Take weight_hh (H, H) and h (H,), the state after a step of h = tanh(weight_hh @ h_before + …), and return "
        "the Jacobian (H, H) of h with respect to h_before: row i for h[i], column j for h_before[j]."
    ),
    solution=state_jacobian,
    mistakes={
        "this is the Jacobian of the sum inside the tanh; the chain rule has one more factor.": lambda weight_hh, h: (
            weight_hh
        ),
        "rows and columns are swapped: row i has to hold the derivatives of h[i].": lambda weight_hh, h: (
            state_jacobian(weight_hh, h).T
        ),
        "the derivative of tanh multiplies the columns; it belongs to the output unit, not to the input "
        "unit.": lambda weight_hh, h: weight_hh * (1 - h**2),
        "you apply the tanh to h, which has already been through it; write the derivative of tanh in terms of "
        "its own value.": lambda weight_hh, h: (1 - torch.tanh(h) ** 2)[:, None] * weight_hh,
        "the derivative of tanh is not 1 - tanh. At h = 0 both are 1, but try h = -1.": lambda weight_hh, h: (
            (1 - h)[:, None] * weight_hh
        ),
    },
    cases=lambda: [(weight, torch.tanh(h)) for weight, h in (randn((n, n), (n,), seed=n) for n in (1, 3, 5))],
)


# --------------------------------------------------------------------------------------------------------- with_radius


def with_radius(
    weight: Tensor,
    radius: float,
    size: Callable[[Tensor], Tensor] = lambda weight: torch.linalg.eigvals(weight).abs().max(),
) -> Tensor:
    """Scale `weight` so that its spectral radius is `radius`; `size` is a possible mistake."""
    return weight * (radius / size(weight))


MEMORY["with_radius"] = Exercise(
    task="Take weight (H, H) and radius, and return weight, scaled so that its spectral radius is radius.",
    solution=with_radius,
    mistakes={
        "it is scaled by its largest singular value; the spectral radius is about eigenvalues.": partial(
            with_radius, size=lambda weight: torch.linalg.matrix_norm(weight, 2)
        ),
        "it is scaled by the norm of all its entries; the spectral radius is about eigenvalues.": partial(
            with_radius, size=torch.linalg.norm
        ),
        "an eigenvalue can be complex, and its real part alone is too small: what counts is its distance from 0.": (
            partial(with_radius, size=lambda weight: torch.linalg.eigvals(weight).real.max())
        ),
        "its spectral radius is 1 for every radius; one factor is missing.": lambda weight, radius: with_radius(
            weight, 1.0
        ),
        "its spectral radius is radius times the old one; bring it to 1 first.": lambda weight, radius: weight * radius,
    },
    cases=lambda: [
        (torch.tensor([[0.0, -2.0], [2.0, 0.5]], dtype=torch.float64), 0.9),
        *((weight, radius) for radius, (weight,) in ((1.1, randn((6, 6), seed=1)), (0.5, randn((9, 9), seed=2)))),
    ],
)


# ------------------------------------------------------------------------------------------------------ clip_gradients


def clip_gradients(gradients: Sequence[Tensor], max_norm: float, always: bool = False) -> list[Tensor]:
    """Scale all of `gradients` together."""
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    if norm <= max_norm and not always:
        return list(gradients)
    return [gradient * (max_norm / norm) for gradient in gradients]


def clip_by_sum_of_norms(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Make the mistake of adding the norms of orthogonal parts."""
    norm = sum(gradient.norm() for gradient in gradients)
    return [gradient * min(1.0, max_norm / norm) for gradient in gradients]


def clip_where_longer(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Make the mistake of scaling to norm 1 instead of max_norm."""
    scaled = clip_gradients(gradients, max_norm)
    return [gradient / max_norm for gradient in scaled] if scaled[0] is not gradients[0] else scaled


MEMORY["clip_gradients"] = Exercise(
    task=(
        "Take a list of gradients, tensors of any shapes, and max_norm; return a list of the same shapes. If the "
        "norm of all entries of all tensors is above max_norm, scale all of them by one factor to give max_norm; else "
        "change nothing."
    ),
    solution=clip_gradients,
    mistakes={
        "each tensor is clipped by its own norm; the gradient is one vector, and its parts must keep their "
        "proportions.": lambda gradients, max_norm: [clip_gradients([gradient], max_norm)[0] for gradient in gradients],
        "each entry is clipped separately, which changes the gradient's direction; one factor has to scale all.": (
            lambda gradients, max_norm: [gradient.clamp(-max_norm, max_norm) for gradient in gradients]
        ),
        "a gradient shorter than max_norm is stretched to it (and one of length 0 becomes NaN); leave it unchanged.": (
            partial(clip_gradients, always=True)
        ),
        "you add the norms of the tensors; the norm of all together is the root of the sum of squares.": (
            clip_by_sum_of_norms
        ),
        "a long gradient comes out with norm 1, not max_norm.": clip_where_longer,
    },
    cases=lambda: [
        (randn((4, 3), (5,), (2, 2, 2), seed=3), 1.5),
        ([0.01 * gradient for gradient in randn((4, 3), (5,), seed=4)], 1.5),
        ([torch.zeros(2, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)], 1.5),
    ],
)


# -------------------------------------------------------------------------------------------------- truncated_gradient


def truncated_gradient(
    weight_hh: Tensor,
    inputs: Tensor,
    window: int,
    carry: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Tensor:
    """Compute the gradient of the sum of h², window by window; `carry` makes the state that is carried on."""
    h = torch.zeros(len(weight_hh), dtype=inputs.dtype)
    total = torch.zeros_like(weight_hh)
    for part in inputs.split(window):  # (window, H)
        h, loss = carry(h), torch.zeros((), dtype=inputs.dtype)
        for x in part:
            h = torch.tanh(weight_hh @ h + x)
            loss = loss + (h**2).sum()
        total = total + torch.autograd.grad(loss, weight_hh, retain_graph=True)[0]
    return total


def last_window_only(weight_hh: Tensor, inputs: Tensor, window: int) -> Tensor:
    """Make the mistake of keeping only the last window's gradient."""
    before = (len(inputs) - 1) // window * window
    return truncated_gradient(weight_hh, inputs, window) - truncated_gradient(weight_hh, inputs[:before], window)


MEMORY["truncated_gradient"] = Exercise(
    task=(
        "Take weight_hh (H, H), which requires a gradient, inputs (T, H) and window; start from h = 0, step "
        "h = tanh(weight_hh @ h + x) through all inputs, the loss of a step being (h**2).sum(), and return the (H, H) "
        "gradient of the sum of all losses that flows back within each window only, while the state is carried on."
    ),
    solution=truncated_gradient,
    mistakes={
        "the gradient flows back across the borders: cut the state from the graph where a window begins.": partial(
            truncated_gradient, carry=lambda h: h
        ),
        "each window starts from an empty memory: cut only the gradient, and carry the state's value on.": partial(
            truncated_gradient, carry=torch.zeros_like
        ),
        "you cut the state from the graph at every step, so no gradient flows back at all; cut it only where a "
        "window begins.": lambda weight_hh, inputs, window: truncated_gradient(weight_hh, inputs, 1),
        "only the last window's gradient is left; those of all windows add up.": last_window_only,
    },
    cases=lambda: [
        (weight.requires_grad_(), inputs, window)
        for window, (weight, inputs) in (
            (3, randn((3, 3), (9, 3), seed=5)),
            (4, randn((5, 5), (10, 5), seed=6)),
        )
    ],
)


# ------------------------------------------------------------------------------------------------------ memory_horizon


def memory_horizon(losses: Mapping[int, float], margin: float) -> int:
    """Find the shortest context that is at most `margin` worse than the longest."""
    best = losses[max(losses)]
    return min(k for k in losses if losses[k] <= best + margin)


def first_small_step(losses: Mapping[int, float], margin: float) -> int:
    """Make the mistake of stopping at the first step that gains little."""
    contexts = sorted(losses)
    return next((a for a, b in pairwise(contexts) if losses[a] - losses[b] <= margin), contexts[-1])


def _from_the_longest_down(losses: Mapping[int, float], margin: float) -> int:
    """Make the mistake of stopping at the first context that is too short."""
    horizon = max(losses)
    for k in sorted(losses, reverse=True):
        if losses[k] > losses[max(losses)] + margin:
            break
        horizon = k
    return horizon


MEMORY["memory_horizon"] = Exercise(
    task=(
        "Take losses, a dictionary from the length k of the context to the loss, in any order, and margin; return the "
        "smallest k whose loss is at most margin above the loss of the longest context."
    ),
    solution=memory_horizon,
    mistakes={
        "your function stops at the first step that gains little, but another fall may follow a plateau. Compare with "
        "the longest context, not with the next one.": first_small_step,
        "this is an index into the list of contexts, not a number of characters.": lambda losses, margin: sorted(
            losses
        ).index(memory_horizon(losses, margin)),
        "margin is a difference in nats, not a share of the loss: 0.1 means 0.1 above.": lambda losses, margin: min(
            k for k in losses if losses[k] <= losses[max(losses)] * (1 + margin)
        ),
        "the contexts come in any order; the last one need not be the longest.": lambda losses, margin: min(
            k for k in losses if losses[k] <= list(losses.values())[-1] + margin
        ),
        "you compare with the smallest loss; compare with the loss of the longest context.": lambda losses, margin: min(
            k for k in losses if losses[k] <= min(losses.values()) + margin
        ),
        "you go down from the longest context and stop too early: a shorter one may be good enough although one in "
        "between is not.": _from_the_longest_down,
        "a loss exactly margin above that of the longest context is still good enough.": lambda losses, margin: min(
            k for k in losses if losses[k] < losses[max(losses)] + margin
        ),
        "a loss far below that of the longest context is also good enough: the difference has a sign.": (
            lambda losses, margin: min(k for k in losses if abs(losses[k] - losses[max(losses)]) <= margin)
        ),
        "this context is too short: its loss is still more than margin above that of the longest. You need the next "
        "one.": lambda losses, margin: max((k for k in losses if losses[k] > losses[max(losses)] + margin), default=0),
    },
    cases=lambda: [
        ({1: 3.0, 2: 2.5, 4: 2.05, 8: 2.0, 16: 1.58, 32: 1.55, 64: 1.5}, 0.1),
        ({16: 2.13, 1: 4.0, 4: 2.25, 64: 2.1, 2: 3.0, 8: 2.24}, 0.1),
        ({1: 0.5, 2: 0.35, 4: 0.3}, 0.1),
        ({2: 2.5, 4: 2.02, 8: 1.5, 16: 2.0}, 0.1),  # the longest is not the best
        ({1: 3.0, 2: 2.04, 4: 2.2, 8: 2.0}, 0.1),  # a longer context is worse
        ({1: 3.0, 2: 1.5, 4: 2.0}, 0.1),  # far better than the longest
        ({1: 3.0, 2: 2.25, 4: 2.125, 8: 2.0}, 0.25),  # exactly margin above
    ],
)
