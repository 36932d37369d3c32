"""The state of a model: nested tuples of tensors whose first dimension is the batch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

State = Any  # nested tuples of tensors whose first dimension is B


def map_state(function: Callable[..., Any], *states: State) -> State:
    """Apply `function` to the tensors at the same place of each state."""
    if isinstance(states[0], Tensor):
        return function(*states)
    return tuple(map_state(function, *parts) for parts in zip(*states, strict=True))


def detach_state(state: State) -> State:
    """Cut a state from the graph: gradients stop here (truncated backpropagation through time)."""
    return map_state(Tensor.detach, state)


def begin_rows(state: State, begins: NDArray[np.bool_] | None) -> State:
    """Set the state to zeros in the rows, `(B,)`, that begin a text."""
    if state is None or begins is None or not begins.any():
        return state
    rows = torch.from_numpy(np.flatnonzero(begins))
    return map_state(lambda tensor: tensor.index_fill(0, rows.to(tensor.device), 0), state)


def flatten_state(state: State) -> dict[str, Tensor]:
    """List the tensors in a state by path: `0.1` is the second tensor of the first layer. None gives an empty dict."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {"": state}
    parts = ((str(i), key, value) for i, part in enumerate(state) for key, value in flatten_state(part).items())
    return {f"{i}.{key}".rstrip("."): value for i, key, value in parts}


def unflatten_state(tensors: Mapping[str, Tensor]) -> State:
    """Put together the state that `flatten_state` took apart."""
    if not tensors:
        return None
    if "" in tensors:
        return tensors[""]
    parts: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        i, _, rest = path.partition(".")
        parts.setdefault(int(i), {})[rest] = value
    return tuple(unflatten_state(parts[i]) for i in sorted(parts))
