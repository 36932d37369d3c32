"""Activations of a network's gates while it reads a text, and statistics of them.

Saturation is defined as in Karpathy, Johnson & Fei-Fei (2015, arXiv:1506.02078, "Visualizing and Understanding
Recurrent Networks").

    T  characters of a text     H  hidden_size     B  streams side by side
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charrnn.generation.generator import TextGenerator
from charrnn.models.cells import gru_cell, layer_norm_lstm_cell, lstm_cell, normalise, unroll
from charrnn.models.recurrent import CharModel

Activations = dict[str, np.ndarray]

NAMES = {
    "i": "input gate i",
    "f": "forget gate f",
    "g": "candidate g",
    "o": "output gate o",
    "c": "cell c",
    "r": "reset gate r",
    "z": "update gate z",
    "n": "candidate n",
    "h": "state h",
}

SIGMOIDS = ("i", "f", "o", "r", "z")  # 0 is shut, 1 is open

SHUT, OPEN = 0.1, 0.9  # beyond these a gate counts as saturated


# ---------------------------------------------------------------------------------------------------------- reading


@torch.no_grad()
def gate_activations(model: CharModel, tokens: Tensor, layer: int = 0) -> Activations:
    """Compute every gate of a layer at every step, starting from an empty state.

    Args:
        model: a GRU or an LSTM, layer-normalised or not.
        tokens: ids `(B, T)`.
        layer: its index; 0 is the lowest.

    Returns:
        `i`, `f`, `g`, `o`, `c`, `h` for an LSTM, `r`, `z`, `n`, `h` for a GRU, `(B, T, H)` each; gates are given after
        their sigmoid or tanh.

    Raises:
        ValueError: the network has no gates, or no such layer.
    """
    if model.cell not in STEPS:
        raise ValueError(f"expected a network with gates, a GRU or an LSTM, got type {model.config.type}")
    if not 0 <= layer < len(model.layers):
        raise ValueError(f"layer: expected 0 to {len(model.layers) - 1}, got {layer}")
    x = model.embedding(tokens)  # (B, T, E)
    zeros = model.zero_state(len(tokens))
    for i in range(layer):
        outputs, _ = unroll(model.cell, x, zeros[i], *model.layers[i].parameters())
        x = outputs + x if model.config.residual and i > 0 else outputs
    step, state, rows = STEPS[model.cell], zeros[layer], []
    for x_t in x.unbind(dim=1):  # (B, I)
        values = step(x_t, state, *model.layers[layer].parameters())
        state = (values["h"], values["c"]) if "c" in values else values["h"]
        rows.append(values)
    return {name: torch.stack([values[name] for values in rows], dim=1).cpu().numpy() for name in rows[0]}


def _lstm_step(x: Tensor, state: tuple[Tensor, Tensor], weight_ih: Tensor, weight_hh: Tensor, *biases: Tensor) -> Any:
    h, c = state
    return _lstm_gates(x @ weight_ih.T + h @ weight_hh.T + sum(biases), c)


def _layer_norm_lstm_step(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    gain_ih: Tensor,
    gain_hh: Tensor,
    gain_c: Tensor,
    bias_c: Tensor,
) -> dict[str, Tensor]:
    h, c = state
    products = normalise(x @ weight_ih.T) * gain_ih + normalise(h @ weight_hh.T) * gain_hh
    return _lstm_gates(products + bias, c, lambda c: normalise(c) * gain_c + bias_c)


def _lstm_gates(products: Tensor, c: Tensor, shown: Callable[[Tensor], Tensor] = lambda c: c) -> dict[str, Tensor]:
    i, f, g, o = products.chunk(4, dim=1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * shown(c).tanh()}


def _gru_step(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> dict[str, Tensor]:
    r_x, z_x, n_x = (x @ weight_ih.T + bias_ih).chunk(3, dim=1)
    r_h, z_h, n_h = (h @ weight_hh.T + bias_hh).chunk(3, dim=1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return {"r": r, "z": z, "n": n, "h": (1 - z) * n + z * h}


STEPS: dict[Callable[..., Any], Callable[..., dict[str, Tensor]]] = {
    lstm_cell: _lstm_step,
    layer_norm_lstm_cell: _layer_norm_lstm_step,
    gru_cell: _gru_step,
}


def read_gates(generator: TextGenerator, text: str, layer: int = 0) -> Activations:
    """Compute `gate_activations` over one text: `(T, H)` each.

    Raises:
        UnknownCharacterError: the text contains a character outside the vocabulary.
        ValueError: the text is empty, or the network has no gates.
    """
    if not text:
        raise ValueError("expected a text of at least one character to read")
    tokens = torch.from_numpy(generator.tokenizer.encode(text).astype(np.int64))
    return {name: values[0] for name, values in gate_activations(generator.model, tokens[None], layer).items()}


# -------------------------------------------------------------------------------------------------------- measuring


def busiest_units(values: np.ndarray, count: int) -> list[int]:
    """Find the `count` units of `values` `(T, H)` with the largest standard deviation, the largest first."""
    return np.argsort(-values.std(axis=0), kind="stable")[:count].tolist()


def saturation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the shares of steps at which each unit's gate is shut (below 0.1) and open (above 0.9): `(H,)` each.

    Args:
        values: of a gate with a sigmoid, `(..., H)`.
    """
    steps = values.reshape(-1, values.shape[-1])
    return (steps < SHUT).mean(axis=0), (steps > OPEN).mean(axis=0)


def run_lengths(values: np.ndarray) -> np.ndarray:
    """Count the characters between steps at which a gate is shut (below 0.1), in all rows of `values` `(B, T)`.

    Runs that begin before the first such step of a row or end after its last are left out, so a gate that is never shut
    twice has no runs.
    """
    return np.concatenate([np.diff(np.flatnonzero(row < SHUT)) for row in values])


def line_positions(tokens: np.ndarray, newline: int) -> np.ndarray:
    """Count the characters since the last newline, in each row of `tokens` `(B, T)`; 0 at a newline.

    Before the first newline of a row the result is NaN.
    """
    places = np.arange(tokens.shape[1])
    last = np.maximum.accumulate(np.where(tokens == newline, places, -1), axis=1)
    return np.where(last < 0, np.nan, places - last)


def correlations(values: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Compute the Pearson correlation of each unit with a feature of the characters; NaN for a constant unit.

    Args:
        values: of a gate, a cell or a state, `(..., H)`.
        feature: `(...)`; characters with NaN are ignored.
    """
    known = ~np.isnan(feature)
    x, y = values[known].astype(np.float64), feature[known].astype(np.float64)
    x, y = x - x.mean(axis=0), y - y.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y[:, None]).mean(axis=0) / (x.std(axis=0) * y.std())
