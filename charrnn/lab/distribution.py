"""The distribution of the next token, before and after the settings of sampling: its picture, and sliders over it."""

from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from charrnn.characters import spoken, visible
from charrnn.lab.figures import BLUE, GREY, ORANGE, Picture, course_style, new_figure, percent
from charrnn.lab.glyphs import ESCAPE
from charrnn.lab.panel import SLIDING, Panel
from charrnn.lab.widgets import settings_of
from charrnn.sampling import RECENT, Reshaping, TextGenerator
from charrnn.sampling_params import SamplingParams
from charrnn.transforms import softmax

Probabilities = NDArray[np.floating]
LONGEST = 24  # characters of a prompt that a title has room for


def next_distribution(
    generator: TextGenerator,
    prompt: str,
    temperature: float | Callable[[int], float] = 1.0,
    drawn: str = "",
    **settings: Any,
) -> tuple[Probabilities, Probabilities]:
    """Probabilities of the token after `prompt` and `drawn`: as the model has them, and as the settings leave them.

    Args:
        generator: its model reads.
        prompt: what it was given; empty starts after a newline.
        temperature: as `TextGenerator.generate` takes it.
        drawn: what it has written since, which a repetition penalty and a temperature that changes look at.
        **settings: top_k, top_p, min_p, typical_p, repetition_penalty, allow, forbid, as for `generate`.

    Returns:
        Two arrays `(V,)`, float64, each of sum 1. What is left out has probability 0.

    Raises:
        UnknownCharacterError: a character outside the vocabulary.
        ValueError: a setting out of range.
    """
    reshape = Reshaping(generator.tokenizer, SamplingParams(temperature=temperature, **settings))
    tokens = generator.tokenizer.encode(drawn)
    for token in tokens[-RECENT:]:
        reshape.remember(np.array([token], dtype=np.int64))
    logits = np.asarray(generator.next_logits(prompt + drawn), dtype=np.float64)
    return softmax(logits), softmax(reshape(logits[None], len(tokens))[0])


def entropy(probabilities: Probabilities) -> float:
    """Mean surprise -sum_i p_i log2 p_i in bits of a distribution `(V,)` (Shannon, 1948)."""
    present = probabilities[probabilities > 0]
    return max(0.0, -float(present @ np.log2(present)))  # never -0.0


@course_style()
def plot_distribution(
    generator: TextGenerator,
    prompt: str,
    count: int = 16,
    temperature: float | Callable[[int], float] = 1.0,
    drawn: str = "",
    **settings: Any,
) -> Picture:
    """Bars of the likeliest tokens, before (outlined) and after (filled) the settings, and where these cut.

    Args:
        generator: its model reads.
        prompt: what it was given; empty starts after a newline.
        count: tokens to show, at most: those that are likeliest before or after, in the order of before.
        temperature: as for `next_distribution`.
        drawn: as for `next_distribution`.
        **settings: as for `next_distribution`.

    Raises:
        UnknownCharacterError: a character outside the vocabulary.
        ValueError: a setting out of range, or a count below 1.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    before, after = next_distribution(generator, prompt, temperature, drawn, **settings)
    chosen = np.argsort(-np.maximum(before, after), kind="stable")[:count]
    shown = chosen[np.argsort(-before[chosen], kind="stable")]
    names = [visible(generator.tokenizer.decode([token])) for token in shown]
    figure, axes = new_figure(8.0, 3.6)
    _draw_bars(axes, names, before[shown], after[shown])
    kept = after > 0
    story = f"{kept.sum()} of {len(kept)} kept, {len(kept) - kept.sum()} out"
    first_out = int(np.argmin(kept[shown]))  # 0 if none is out, or if the likeliest is
    cut = first_out > 0 and not kept[shown][first_out:].any()
    if cut:
        axes.axvline(first_out - 0.5, color=ORANGE, linestyle="--", linewidth=1.5)
    handles, labels = axes.get_legend_handles_labels()
    labels = [f"{label}: {entropy(p):.2f} bits" for label, p in zip(labels, (before, after), strict=True)]
    handles.append(Line2D([], [], color=ORANGE if cut else "none", linestyle="--"))
    figure.legend(handles, [*labels, story], loc="outside lower center", ncols=3, frameon=False)
    read = prompt + drawn
    place = f"after {'…' * (len(read) > LONGEST)}{read[-LONGEST:]!r}" if read else "at the start of a text"
    axes.set(ylabel="probability", title=f"What comes {place}?")
    return Picture(figure, _described(generator, place, before, after))


def _draw_bars(axes: Any, names: list[str], before: Probabilities, after: Probabilities) -> None:
    x = np.arange(len(names))
    axes.bar(x, before, 0.84, label="as the model has it", facecolor="none", edgecolor=GREY, hatch="///", linewidth=1.2)
    axes.bar(x, after, 0.56, label="after the settings", color=BLUE)
    for place, low, high in zip(x, before, after, strict=True):
        axes.annotate(
            percent(high) if high else "out",
            (place, max(low, high)),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="black" if high else ORANGE,
        )
    long = any(len(name) > 4 and not ESCAPE.fullmatch(name) for name in names)
    axes.set_xticks(x, names, **({"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}))
    axes.set(ylim=(0, max(before.max(), after.max()) * 1.12), xlim=(-0.6, len(names) - 0.4))


def _described(generator: TextGenerator, place: str, before: Probabilities, after: Probabilities) -> str:
    """The alt text: the likeliest before and after, what is kept, both entropies."""

    def likeliest(probabilities: Probabilities) -> str:
        token = generator.tokenizer.decode([int(probabilities.argmax())])
        name = spoken(token) if len(token) == 1 else repr(token)
        share, bits = percent(probabilities.max()), entropy(probabilities)
        return f"{name} is the likeliest with {share}, the entropy {bits:.2f} bits"

    kept = after > 0
    return (
        f"Bar chart of what comes {place}: as the model has it, {likeliest(before)}; after the settings, "
        f"{likeliest(after)}; kept are {kept.sum()} of {len(kept)} tokens, which held {percent(before[kept].sum())}."
    )


class DistributionPanel(Panel):
    """A prompt and the settings that reshape the distribution after it, over its picture.

    Args:
        generator: its model reads.
        prompt: what stands in the box at first.
        count: tokens to show, at most.
    """

    def __init__(self, generator: TextGenerator, prompt: str = "My lord, I ", count: int = 16):
        self._generator, self._count = generator, count
        wide = SLIDING | {"style": {"description_width": "9.5em"}}
        sliders = {
            "temperature": ipywidgets.FloatSlider(1.0, min=0, max=3, step=0.05, description="temperature", **wide),
            "top_k": ipywidgets.IntSlider(
                0, min=0, max=generator.tokenizer.vocab_size, description="top-k (0: off)", **wide
            ),
            "top_p": ipywidgets.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="top-p (1: off)", **wide),
            "min_p": ipywidgets.FloatSlider(0.0, min=0, max=1, step=0.01, description="min-p (0: off)", **wide),
            "typical_p": ipywidgets.FloatSlider(
                1.0, min=0.05, max=1, step=0.05, description="typical-p (1: off)", **wide
            ),
        }
        box = ipywidgets.Textarea(prompt, description="prompt", rows=2, **wide)
        super().__init__({"prompt": box} | sliders)

    def picture(
        self, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
    ) -> Picture:
        """The distribution after `prompt`; a value that means off is not passed on."""
        filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
        return plot_distribution(self._generator, prompt, self._count, temperature, **settings_of(filters))
