"""What each ingredient of a training recipe buys: the same network and text, one thing added at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from charrnn.lab.figures import BLUE, GREY, Picture, course_style, new_figure

INGREDIENTS: dict[str, dict[str, Any]] = {  # each adds to those above it, or replaces what they say
    "plain SGD": {"optimizer": "sgd", "beta1": 0.0, "learning_rate": 1.0},
    "SGD, a better rate": {"learning_rate": 5.0},
    "AdamW": {"optimizer": "adamw", "beta1": 0.9, "learning_rate": 0.02},
    "+ clipping": {"grad_clip": 0.5},
    "+ schedule": {"schedule": "cosine", "warmup_frac": 0.05, "hold_frac": 0.6},
    "+ Muon": {"optimizer": "muon", "muon_learning_rate": 0.02},
    "+ mean of weights": {"ema_decay": 0.95},
}


def recipes(ingredients: Mapping[str, Mapping[str, Any]] = INGREDIENTS) -> dict[str, dict[str, Any]]:
    """The settings that each step of the ladder trains with: its own and those of the steps before it."""
    gathered: dict[str, Any] = {}
    ladder = {}
    for name, settings in ingredients.items():
        gathered = gathered | dict(settings)
        ladder[name] = gathered
    return ladder


@course_style()
def plot_ingredients(losses: Mapping[str, Sequence[float]]) -> Picture:
    """A row for each recipe, from the top down: a point for each seed, a bar at their mean.

    Args:
        losses: final validation losses by recipe, nats per token, one for each seed.
    """
    figure, axes = new_figure(8.0, 0.9 + 0.42 * len(losses))
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    for row, (name, values) in enumerate(losses.items()):
        axes.plot([means[name]] * 2, [row - 0.3, row + 0.3], color=BLUE, linewidth=3)
        if len(values) > 1:
            axes.plot(values, [row] * len(values), "o", color=GREY, markersize=6, markerfacecolor="none")
        axes.annotate(f"{means[name]:.3f}", (max(values), row), (9, 0), textcoords="offset points", va="center")
    low, high = min(map(min, losses.values())), max(map(max, losses.values()))
    axes.set_yticks(range(len(losses)), list(losses))
    axes.invert_yaxis()
    axes.set(xlabel="validation loss, nats per character", xlim=(low - 0.03, high + 0.12 * (high - low) + 0.03))
    axes.set_title(
        "One thing added at a time" + (", a circle for each seed" if len(next(iter(losses.values()))) > 1 else "")
    )
    said = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    return Picture(figure, f"Validation loss by recipe, from the first to the last: {said}.")
