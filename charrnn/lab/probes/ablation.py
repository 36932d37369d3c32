"""The ablation ladder: recipes that each add one setting to the one before."""

from collections.abc import Mapping
from typing import Any

ABLATIONS: dict[str, dict[str, Any]] = {  # each adds settings to those above it, or replaces them
    "plain SGD": {"optimizer": "sgd", "beta1": 0.0, "learning_rate": 1.0},
    "SGD, a better rate": {"learning_rate": 5.0},
    "AdamW": {"optimizer": "adamw", "beta1": 0.9, "learning_rate": 0.02},
    "+ clipping": {"grad_clip": 0.5},
    "+ schedule": {"schedule": "cosine", "warmup_frac": 0.05, "hold_frac": 0.6},
    "+ Muon": {"optimizer": "muon", "muon_learning_rate": 0.02},
    "+ EMA of weights": {"ema_decay": 0.95},
}


def recipes(ablations: Mapping[str, Mapping[str, Any]] = ABLATIONS) -> dict[str, dict[str, Any]]:
    """Collect the settings of each step of the ladder: its own and those of the steps before it."""
    gathered: dict[str, Any] = {}
    ladder = {}
    for name, settings in ablations.items():
        gathered = gathered | dict(settings)
        ladder[name] = gathered
    return ladder
