"""The states of a network along a text, and the plane in which they differ most.

T  characters read     H  hidden_size     K  axes of the plane, usually two
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from charrnn.data.characters import spoken
from charrnn.models.recurrent import CharModel

PLACES = ("between words", "1st letter", "2nd letter", "3rd letter", "4th or 5th", "6th or later")


def read_states(model: CharModel, tokens: Tensor) -> Tensor:
    """Read tokens from an empty memory and collect the states of the top layer.

    Args:
        model: in its current mode.
        tokens: ids `(B, T)`, T at least 1.

    Returns:
        h after each token, `(B, T, H)`.
    """
    state, states = None, []
    with torch.no_grad():
        for column in tokens.split(1, dim=1):  # (B, 1)
            _, state = model(column, state)
            states.append(state[-1][0] if isinstance(state[-1], tuple) else state[-1])
    return torch.stack(states, dim=1)


# --------------------------------------------------------------------------------------------- principal components


class Components(NamedTuple):
    """The directions in which states differ most (Pearson, 1901; Hotelling, 1933).

    Attributes:
        mean: of all states, `(H,)`.
        axes: orthogonal unit vectors, `(K, H)`, in decreasing order of variance.
        share: share of the states' variance along each axis, `(K,)`.
    """

    mean: Tensor
    axes: Tensor
    share: Tensor

    def project(self, states: Tensor) -> Tensor:
        """Project `states` `(…, H)` onto the axes: `(…, K)`."""
        return (states - self.mean) @ self.axes.T


def principal_components(states: Tensor, count: int = 2) -> Components:
    """Compute the first `count` principal components of `states` `(N, H)`.

    The sign of an axis is arbitrary; here its largest weight is positive, so that figures are reproducible.
    """
    mean = states.mean(0)
    _, lengths, axes = torch.linalg.svd(states - mean, full_matrices=False)
    axes = axes[:count]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # (K, 1)
    return Components(mean, axes * largest.sign(), (lengths**2 / (lengths**2).sum())[:count])


def share_between(points: Tensor, groups: Sequence[str]) -> float:
    """Compute the share of the variance of `points` `(N, K)` between groups: 0 if centres agree, 1 for points."""
    points = points - points.mean(0)
    names = np.array(groups)
    within = sum(_variation(points[torch.from_numpy(names == name)]) for name in set(groups))
    return 1 - within / _variation(points)


def _variation(points: Tensor) -> float:
    return float(((points - points.mean(0)) ** 2).sum())


# ----------------------------------------------------------------------------------------------- groups of characters


def word_places(text: str) -> list[str]:
    """Find the place of each character in its word; anything but a letter is between words."""
    place, places = 0, []
    for character in text:
        place = place + 1 if character.isalpha() else 0
        places.append(PLACES[(0, 1, 2, 3, 4, 4, 5)[min(place, 6)]])
    return places


def character_kinds(text: str) -> list[str]:
    """Find the kind of each character: space, newline, punctuation, vowel, consonant or capital."""

    def kind(character: str) -> str:
        if character in " \n":
            return spoken(character)
        if character.isupper():
            return "capital"
        return "punctuation" if not character.isalpha() else "vowel" if character in "aeiou" else "consonant"

    return [kind(character) for character in text]
