"""What the gates of a network do while it reads: their activations over a text, and pictures of them.

How often a gate is all but shut or wide open is drawn as in Karpathy, Johnson & Fei-Fei (2015, arXiv:1506.02078,
"Visualizing and Understanding Recurrent Networks").

    T  characters of a text     H  hidden_size     B  streams side by side
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from torch import Tensor

from charrnn.cells import gru_cell, layer_norm_lstm_cell, lstm_cell, normalise, unroll
from charrnn.characters import spoken, visible
from charrnn.lab.figures import BLUE, GREY, ORANGE, Picture, course_style, new_figure
from charrnn.models import CharModel
from charrnn.sampling import TextGenerator

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
SIGMOIDS = ("i", "f", "o", "r", "z")  # from 0, shut, to 1, open
SHUT, OPEN = 0.1, 0.9  # beyond these a gate counts as saturated
SHADES = colormaps["cividis"]  # lightness grows with the value, so it reads the same without colour


# ---------------------------------------------------------------------------------------------------------- reading


@torch.no_grad()
def gate_activations(model: CharModel, tokens: Tensor, layer: int = 0) -> Activations:
    """Every gate of a layer at every step, starting from an empty state.

    Args:
        model: a GRU or an LSTM, layer-normalised or not.
        tokens: ids `(B, T)`.
        layer: which one, 0 being the lowest.

    Returns:
        Of an LSTM `i`, `f`, `g`, `o`, `c`, `h`, of a GRU `r`, `z`, `n`, `h`: `(B, T, H)` each, the gates after their
        sigmoid or tanh.

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
    """`gate_activations` over one text: `(T, H)` each.

    Raises:
        UnknownCharacterError: the text has a character that the model does not know.
        ValueError: the text is empty, or the network has no gates.
    """
    if not text:
        raise ValueError("expected a text of at least one character to read")
    tokens = torch.from_numpy(generator.tokenizer.encode(text).astype(np.int64))
    return {name: values[0] for name, values in gate_activations(generator.model, tokens[None], layer).items()}


# -------------------------------------------------------------------------------------------------------- measuring


def busiest_units(values: np.ndarray, count: int) -> list[int]:
    """The `count` units of `values` `(T, H)` that vary most over a text, by standard deviation, the busiest first."""
    return np.argsort(-values.std(axis=0), kind="stable")[:count].tolist()


def saturation(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of its time that each unit's gate is shut (below 0.1) and open (above 0.9): `(H,)` each.

    Args:
        values: of a gate with a sigmoid, `(..., H)`.
    """
    steps = values.reshape(-1, values.shape[-1])
    return (steps < SHUT).mean(axis=0), (steps > OPEN).mean(axis=0)


def run_lengths(values: np.ndarray) -> np.ndarray:
    """Characters from each moment at which a gate is shut (below 0.1) to the next, over all rows of `values` `(B, T)`.

    Runs that begin before the first such moment of a row or end after its last are not counted.

    None is left of a gate that is never shut twice.
    """
    return np.concatenate([np.diff(np.flatnonzero(row < SHUT)) for row in values])


def line_positions(tokens: np.ndarray, newline: int) -> np.ndarray:
    """How many characters ago the last newline was, in each row of `tokens` `(B, T)`; 0 at a newline.

    Before the first newline of a row it is not known: NaN.
    """
    places = np.arange(tokens.shape[1])
    last = np.maximum.accumulate(np.where(tokens == newline, places, -1), axis=1)
    return np.where(last < 0, np.nan, places - last)


def correlations(values: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Correlation (Pearson) of each unit with a number that is known of each character; NaN for a constant unit.

    Args:
        values: of a gate, a cell or a state, `(..., H)`.
        feature: `(...)`; where it is NaN the character does not count.
    """
    known = ~np.isnan(feature)
    x, y = values[known].astype(np.float64), feature[known].astype(np.float64)
    x, y = x - x.mean(axis=0), y - y.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y[:, None]).mean(axis=0) / (x.std(axis=0) * y.std())


# --------------------------------------------------------------------------------------------------------- pictures


@course_style()
def plot_gates(text: str, values: np.ndarray, name: str, units: Sequence[int]) -> Picture:
    """A map of some units of a gate over a text: a column for each character, a row for each unit.

    Args:
        text: what was read, up to about 100 characters.
        values: of the gate, `(T, H)`, the value after each character.
        name: of the gate, a key of `NAMES`.
        units: rows, from above.

    Raises:
        ValueError: text and values are not of the same length.
    """
    if len(text) != len(values):
        raise ValueError(f"expected a row of values for each of {len(text)} characters, got {len(values)}")
    low, high = _limits(name, values[:, list(units)])
    figure, axes = new_figure(10.0, 1.1 + 0.21 * len(units))
    image = axes.imshow(
        values[:, list(units)].T, cmap=SHADES, vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    axes.set_xticks(range(len(text)), [visible(character) for character in text], family="DejaVu Sans Mono", fontsize=9)
    axes.set_yticks(range(len(units)), [str(unit) for unit in units], fontsize=8)
    axes.tick_params(length=0)
    axes.set(ylabel="unit", title=f"The {NAMES[name]} after each character")
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    if name in SIGMOIDS:
        bar.set_ticks([0, 0.5, 1], labels=["0 shut", "0.5", "1 open"])
    shown = values[:, list(units)]
    alt = (
        f"Map of the {NAMES[name]} of {len(units)} units over {len(text)} characters, light for high: mean "
        f"{shown.mean():.2f}, lowest {shown.min():.2f}, highest {shown.max():.2f}; unit {units[0]} is lowest after "
        f"{spoken(text[int(shown[:, 0].argmin())])} and highest after {spoken(text[int(shown[:, 0].argmax())])}."
    )
    return Picture(figure, alt)


def _limits(name: str, values: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale: those of the function that made the values; of a cell, what it reaches."""
    if name == "c":
        return -float(np.abs(values).max()), float(np.abs(values).max())
    return (0.0, 1.0) if name in SIGMOIDS else (-1.0, 1.0)


@course_style()
def plot_unit(text: str, values: np.ndarray, title: str) -> Picture:
    """A text, each character on a ground that says how high one unit was after reading it.

    Args:
        text: what was read, a few lines.
        values: of the unit, `(T,)`.
        title: what the unit is.
    """
    lines = text.removesuffix("\n").split("\n")
    low, high = float(values.min()), float(values.max())
    shades = (values - low) / max(high - low, 1e-9)
    figure, axes = new_figure(10.0, 0.7 + 0.3 * len(lines))
    style = {"ha": "center", "va": "center", "family": "DejaVu Sans Mono", "fontsize": 10, "in_layout": False}
    row = column = 0
    for character, shade in zip(text, shades, strict=True):
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=SHADES(shade), linewidth=0))
        axes.text(column + 0.5, row + 0.5, visible(character), color="white" if shade < 0.5 else "black", **style)
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    axes.set_xlim(0, max(60, *(len(line) + 1 for line in lines)))
    axes.set_ylim(len(lines), 0)
    axes.set_axis_off()
    axes.set_title(f"{title}: dark {low:.2g}, light {high:.2g}", fontsize=11, loc="left")
    alt = (
        f"{len(lines)} lines of text, each character shaded by {title}: from {low:.2f} after "
        f"{spoken(text[int(values.argmin())])} to {high:.2f} after {spoken(text[int(values.argmax())])}."
    )
    return Picture(figure, alt)


@course_style()
def plot_saturation(activations: Mapping[str, np.ndarray]) -> Picture:
    """For each gate a panel, in it each unit: how often it is open against how often it is shut.

    A unit near the origin never saturates; one near the end of an axis always does; on the slanted line it is nearly
    binary.

    Args:
        activations: gates with a sigmoid, `(..., H)` each, by name.
    """
    first, axes = new_figure(3.3 * len(activations), 3.6)
    axes.remove()
    panels = first.subplots(1, len(activations), sharex=True, sharey=True, squeeze=False)[0]
    said = []
    for panel, (name, values) in zip(panels, activations.items(), strict=True):
        shut, opened = saturation(values)
        panel.plot([0, 1], [1, 0], ":", color=GREY)
        panel.plot(shut, opened, "o", color=BLUE, markersize=4, alpha=0.5, markeredgewidth=0)
        panel.plot(shut.mean(), opened.mean(), "P", color=ORANGE, markersize=11, markeredgecolor="white")
        panel.set(title=NAMES[name], xlabel=f"share of time below {SHUT}", aspect="equal")
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        panel.spines[["top", "right"]].set_visible(False)
        said.append(f"{NAMES[name]}: shut {shut.mean():.0%} and open {opened.mean():.0%} of the time")
    panels[0].set_ylabel(f"share of time above {OPEN}")
    alt = f"Scatter of {len(shut)} units for each gate; a cross marks the mean. {'; '.join(said)}."
    return Picture(first, alt)


@course_style()
def plot_by_position(positions: np.ndarray, values: np.ndarray, title: str, longest: int = 50) -> Picture:
    """Mean of one unit by the position in the line, with the band that holds the middle 80% of its values.

    Args:
        positions: as from `line_positions`, any shape; NaN does not count.
        values: of the unit, the same shape.
        title: stands above.
        longest: positions beyond are not drawn.
    """
    places = [place for place in range(longest + 1) if (positions == place).sum() > 1]
    groups = [values[positions == place] for place in places]
    means = [float(group.mean()) for group in groups]
    low, high = ([float(np.quantile(group, q)) for group in groups] for q in (0.1, 0.9))
    figure, axes = new_figure()
    axes.fill_between(places, low, high, color=BLUE, alpha=0.2, linewidth=0, label="8 of 10 values")
    axes.plot(places, means, "o-", color=BLUE, markersize=3.5, label="mean")
    axes.set(xlabel="characters since the last newline", ylabel="value", title=title)
    axes.legend(frameon=False)
    alt = (
        f"Line chart of the mean value by position in the line: {means[0]:.2f} at {places[0]}, "
        f"{means[len(means) // 2]:.2f} at {places[len(means) // 2]}, {means[-1]:.2f} at {places[-1]}."
    )
    return Picture(figure, alt)
