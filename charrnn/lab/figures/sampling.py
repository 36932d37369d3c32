"""Figures of distributions and draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from charrnn.data.characters import spoken, visible
from charrnn.generation.generator import TextGenerator
from charrnn.generation.logits import softmax
from charrnn.lab.figures.base import BLUE, GREY, LOOKS, ORANGE, CaptionedFigure, course_style, new_figure
from charrnn.lab.figures.glyphs import ESCAPE
from charrnn.lab.figures.labels import percent
from charrnn.lab.probes.distribution import Probabilities, entropy, next_character_probabilities, next_distribution
from charrnn.lab.probes.states import read_states

LONGEST = 24  # characters of a prompt that fit into a title


@course_style()
def plot_distribution(
    generator: TextGenerator,
    prompt: str,
    count: int = 16,
    temperature: float | Callable[[int], float] = 1.0,
    drawn: str = "",
    **settings: Any,
) -> CaptionedFigure:
    """Draw bars of the likeliest tokens before (outlined) and after (filled) the settings, and mark the cut.

    Args:
        generator: the network.
        prompt: the text it was given; an empty one stands for a newline.
        count: the number of tokens to show at most: the likeliest before or after, in the order of before.
        temperature: as for `next_distribution`.
        drawn: as for `next_distribution`.
        **settings: as for `next_distribution`.

    Raises:
        UnknownCharacterError: the prompt contains a character outside the vocabulary.
        ValueError: a setting is out of range, or count is below 1.
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
    first_out = int(np.argmin(kept[shown]))  # 0 if all are kept, or if the likeliest is not
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
    return CaptionedFigure(figure, f"Bar chart of what comes {place}", _described(generator, before, after))


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


def _described(generator: TextGenerator, before: Probabilities, after: Probabilities) -> str:
    """Describe the likeliest token and the entropy before and after, and the kept tokens."""

    def likeliest(probabilities: Probabilities) -> str:
        token = generator.tokenizer.decode([int(probabilities.argmax())])
        name = spoken(token) if len(token) == 1 else repr(token)
        share, bits = percent(probabilities.max()), entropy(probabilities)
        return f"{name} is the likeliest with {share}, the entropy {bits:.2f} bits"

    kept = after > 0
    return (
        f"as the model has it, {likeliest(before)}; after the settings, {likeliest(after)}; kept are {kept.sum()} of "
        f"{len(kept)} tokens, which held {percent(before[kept].sum())}."
    )


@course_style()
def plot_next_character(generator: TextGenerator, prompt: str, count: int = 10) -> CaptionedFigure:
    """Draw bars of the likeliest characters after `prompt`."""
    likeliest = next_character_probabilities(generator, prompt, count)
    names = [spoken(character) for character, _ in likeliest]
    values = [probability for _, probability in likeliest]
    figure, axes = new_figure()
    bars = axes.bar(range(len(names)), values, color=BLUE)
    axes.set_xticks(range(len(names)), names)
    axes.bar_label(bars, [percent(value) for value in values], padding=2)
    axes.set(ylabel="probability", ylim=(0, max(values) * 1.15), title=f"What comes after {prompt!r}?")
    return CaptionedFigure(
        figure,
        f"Bar chart of the next character after {prompt!r}",
        f"{names[0]} has probability {percent(values[0])}; the {len(names)} likeliest, from {names[0]} to {names[-1]}, "
        f"hold {percent(sum(values))} together.",
    )


HIGHEST = 12.0  # bits of the tallest bar that fits


@course_style()
def plot_draw(names: Sequence[str], probabilities: ArrayLike, uniform: float) -> CaptionedFigure:
    """Draw the probabilities laid end to end from 0 to 1, and the uniform number that falls into one of them.

    Args:
        names: of the V tokens.
        probabilities: `(V,)`, with sum 1.
        uniform: in [0, 1).
    """
    ends = np.cumsum(probabilities)
    starts = np.concatenate([[0.0], ends[:-1]])
    drawn = int((ends <= uniform * ends[-1]).sum())
    figure, axes = new_figure(9.0, 1.9)
    for place, (name, start, end) in enumerate(zip(names, starts, ends, strict=True)):
        face = BLUE if place == drawn else ("white", "#DDDDDD")[place % 2]
        axes.add_patch(Rectangle((start, 0), end - start, 1, facecolor=face, edgecolor=GREY, linewidth=0.5))
        if end - start > 0.018:  # there is room for a letter
            color = "white" if place == drawn else "black"
            axes.text((start + end) / 2, 0.5, visible(name), ha="center", va="center", color=color)
    axes.plot([uniform] * 2, [-0.05, 1.25], color=ORANGE, linewidth=2)
    axes.text(
        np.clip(uniform, 0.1, 0.9),
        1.3,
        f"u = {uniform:.3f} falls into {visible(names[drawn])}",
        color=ORANGE,
        ha="center",
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.65), yticks=[], xlabel="cumulative probability")
    axes.spines["left"].set_visible(False)
    return CaptionedFigure(
        figure,
        f"The probabilities of {len(names)} characters laid end to end from 0 to 1",
        f"{uniform:.3f} falls into {visible(names[drawn])}, which reaches from {starts[drawn]:.3f} to "
        f"{ends[drawn]:.3f}.",
    )


@course_style()
def plot_kept(
    generator: TextGenerator, prompts: Sequence[str], rules: Mapping[str, Callable[[Any], Any]], count: int = 20
) -> CaptionedFigure:
    """Draw which tokens each rule keeps after several prompts: bars of the likeliest tokens, and a row for each rule.

    Args:
        generator: the network.
        prompts: shown side by side.
        rules: by name, functions from the probabilities `(V,)` to whether each token is kept, `(V,)`.
        count: the number of tokens to show.
    """
    figure, grid = new_figure(
        5.5 * len(prompts), 4.4, 2, len(prompts), height_ratios=[2, 1], sharex="col", squeeze=False
    )
    said = []
    for prompt, (above, below) in zip(prompts, grid.T, strict=True):
        probabilities = softmax(np.asarray(generator.next_logits(prompt), dtype=np.float64))
        shown = np.argsort(-probabilities, kind="stable")[:count]
        names = [visible(generator.tokenizer.decode([token])) for token in shown]
        kept = {name: np.asarray(rule(probabilities), dtype=bool) for name, rule in rules.items()}
        place, bits = f"after {prompt!r}", f": {entropy(probabilities):.1f} bits"
        above.bar(range(len(shown)), probabilities[shown], color=BLUE)
        # the mark ends a right-to-left prompt, which would otherwise reorder the number
        above.set(title=f"{place}\N{LEFT-TO-RIGHT MARK}{bits}", ylabel="probability")
        _draw_rows(below, names, [each[shown] for each in kept.values()])
        below.set_yticks(range(len(kept)), [f"{name}: {each.sum()}" for name, each in kept.items()])
        counts = ", ".join(f"{name} {each.sum()}" for name, each in kept.items())
        said.append(
            f"{place}{bits}, {names[0]} is the likeliest with {percent(probabilities.max())}, kept are: {counts}"
        )
    return CaptionedFigure(figure, "The likeliest characters: a square is kept, a cross is out", f"{'; '.join(said)}.")


def _draw_rows(axes: Any, names: Sequence[str], rows: Sequence[NDArray[np.bool_]]) -> None:
    x = np.arange(len(names))
    for place, kept in enumerate(rows):
        axes.plot(x[kept], np.full(kept.sum(), place), "s", color=BLUE, markersize=9)
        axes.plot(x[~kept], np.full((~kept).sum(), place), "x", color=ORANGE, markersize=6)
    axes.set_xticks(x, names)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.6, len(names) - 0.4))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


@course_style()
def plot_measures_over(
    x: Sequence[float],
    measures: Mapping[str, Sequence[float]],
    xlabel: str,
    references: Mapping[str, float] | None = None,
    logarithmic: bool = False,
) -> CaptionedFigure:
    """Plot several measures side by side over the same x, with the level of human text.

    Args:
        x: at most ten values.
        measures: by title, a value for each x.
        xlabel: label of x.
        references: for some of the measures, the value of human text.
        logarithmic: use a logarithmic x axis.
    """
    references = references or {}
    figure, grid = new_figure(3.7 * len(measures), 3.3, 1, len(measures), squeeze=False)
    said = []
    for (name, values), axes in zip(measures.items(), grid[0], strict=True):
        axes.plot(x, values, "o-", color=BLUE)
        said.append(f"{name}: " + ", ".join(f"{y:.2f} at {place:g}" for place, y in zip(x, values, strict=True)))
        title = name
        if name in references:
            axes.axhline(references[name], color=ORANGE, linestyle="--", linewidth=1.5)
            title += f"\ndashed: human text, {references[name]:.2f}"
            said[-1] += f"; human text {references[name]:.2f}"
        axes.set(title=title, xlabel=xlabel, ylim=(0, max(*values, references.get(name, 0.0)) * 1.1))
        if logarithmic:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(x, [f"{place:g}" for place in x])
    return CaptionedFigure(figure, f"Line charts of {', '.join(measures)} over {xlabel}", f"{'. '.join(said)}.")


@course_style()
def plot_profiles(profiles: Mapping[str, ArrayLike], shown: int = 150) -> CaptionedFigure:
    """Plot the surprisal along several texts, one below the other.

    Args:
        profiles: for each text the bits of its characters, `(T,)`.
        shown: the number of characters to draw; mean and deviation cover the whole text.
    """
    figure, grid = new_figure(9.0, 1.55 * len(profiles), len(profiles), 1, sharex=True, sharey=True, squeeze=False)
    said = []
    for (name, bits), axes, (color, _, _) in zip(profiles.items(), grid[:, 0], LOOKS, strict=False):
        bits = np.asarray(bits)
        axes.bar(np.arange(min(shown, len(bits))), bits[:shown], width=1.0, color=color)
        numbers = f"mean {bits.mean():.2f} bits, deviation {bits.std():.2f}"
        axes.set_title(f"{name}: {numbers}", loc="left", fontsize=11)
        axes.set(ylabel="bits", xlim=(-1, shown), ylim=(0, HIGHEST))
        said.append(f"{name}: {numbers}, {percent((bits > 4).mean())} of the characters above 4 bits")
    axes.set_xlabel(f"place in the text; bars end at {HIGHEST:g} bits")
    return CaptionedFigure(
        figure, f"The surprisal of each character along {len(profiles)} texts", f"{'; '.join(said)}."
    )


@course_style()
def plot_following(temperatures: ArrayLike, bits: ArrayLike, window: int = 9) -> CaptionedFigure:
    """Plot a temperature that changes along the text, and below it the surprisal of the text.

    Args:
        temperatures: of each step, `(T,)`.
        bits: mean surprisal at each step, `(T,)`.
        window: the number of steps that the smooth curve averages.
    """
    bits, share = np.asarray(bits), np.ones(window) / window
    smooth = np.convolve(bits, share, "valid")
    figure, (above, below) = new_figure(9.0, 4.2, 2, 1, sharex=True)
    above.plot(temperatures, color=ORANGE)
    above.set(ylabel="temperature", ylim=(0, None))
    below.plot(bits, color=GREY, linewidth=0.7, label="each character")
    below.plot(np.arange(len(smooth)) + window // 2, smooth, color=BLUE, linewidth=2, label=f"mean of {window}")
    below.set(ylabel="surprisal in bits", xlabel="place in the text", ylim=(0, bits.max() * 1.3))
    below.legend(frameon=False, loc="upper right", ncols=2)
    middle = np.asarray(temperatures)[window // 2 :][: len(smooth)]
    return CaptionedFigure(
        figure,
        f"Temperature and surprisal over {len(bits)} characters",
        f"the temperature goes between {np.min(temperatures):g} and {np.max(temperatures):g}, the mean surprisal "
        f"between {smooth.min():.2f} and {smooth.max():.2f} bits; their correlation is "
        f"{np.corrcoef(middle, smooth)[0, 1]:.2f}.",
    )


@course_style()
def plot_frontier(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], xlabel: str, ylabel: str, title: str
) -> CaptionedFigure:
    """Plot the trade-off between two measures: a curve for each rule, each point labelled with its setting.

    Args:
        curves: for each rule a list of (setting, x, y).
        xlabel: label of x.
        ylabel: label of y.
        title: of the figure.

    Raises:
        ValueError: more than four rules.
    """
    if len(curves) > len(LOOKS):
        raise ValueError(f"expected at most {len(LOOKS)} rules, got {len(curves)}")
    figure, axes = new_figure(8.0, 4.2)
    said = []
    for (name, points), (color, line, marker) in zip(curves.items(), LOOKS, strict=False):
        _, x, y = zip(*points, strict=True)
        axes.plot(x, y, line, marker=marker, color=color, markersize=6, label=name)
        for setting, *place in points:
            axes.annotate(f"{setting:g}", place, (5, 4), textcoords="offset points", color=color, fontsize=8)
        said.append(f"{name} " + ", ".join(f"{s:g} at ({a:.3f}, {b:.3f})" for s, a, b in points))
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(frameon=False)
    return CaptionedFigure(figure, f"{ylabel} over {xlabel}, a curve for each rule", f"{'; '.join(said)}.")


@course_style()
def plot_choice(
    generator: TextGenerator, text: str, count: int = 8, units: int = 24, steps: int = 24
) -> CaptionedFigure:
    """Draw the likeliest characters after `text`, and the state of the network along the text.

    Args:
        generator: the network.
        text: the text so far; an empty one stands for a newline.
        count: the number of characters to choose from.
        units: the number of units to show, from the first of the top layer.
        steps: the number of characters to show, from the end of the text.

    Raises:
        UnknownCharacterError: the text contains a character outside the vocabulary.
    """
    likeliest = next_character_probabilities(generator, text, count)
    read = text or "\n"
    tokens = torch.from_numpy(np.asarray(generator.tokenizer.encode(read), dtype=np.int64))
    states = read_states(generator.model, tokens[None])[0, -steps:, :units].numpy()  # (steps, units)
    figure, (left, right) = new_figure(10.5, 3.4, 1, 2, width_ratios=[6, 5])
    names = [visible(character) for character, _ in likeliest]
    bars = left.bar(range(len(names)), [p for _, p in likeliest], color=BLUE)
    left.set_xticks(range(len(names)), names)
    left.bar_label(bars, [percent(p) for _, p in likeliest], padding=2, fontsize=8)
    left.set(ylabel="probability", ylim=(0, likeliest[0][1] * 1.15), title="What may come next")
    image = right.imshow(states.T, cmap="cividis", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    right.set_xticks(range(len(states)), [visible(character) for character in read[-steps:]])
    right.set(ylabel="unit", title=f"{states.shape[1]} units of the top layer, after each character")
    figure.colorbar(image, ax=right, label="h")
    moved = np.abs(states[-1] - states[-2]).mean() if len(states) > 1 else 0.0
    return CaptionedFigure(
        figure,
        f"The likeliest characters after …{read[-steps:]!r}, and {states.shape[1]} units of the state",
        f"the likeliest is {names[0]} with {percent(likeliest[0][1])}; the {len(names)} shown hold "
        f"{percent(sum(p for _, p in likeliest))}. The last character moved these units by {moved:.2f} on average.",
    )
