"""Figures of texts: frequencies of characters and words, streams and windows, and n-gram baselines."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.patches import Rectangle

from charrnn.data.characters import spoken, visible
from charrnn.data.corpus import Corpus
from charrnn.data.statistics import token_counts
from charrnn.data.streams import Batch, CharDataset
from charrnn.lab.figures.base import BLUE, GREEN, GREY, ORANGE, CaptionedFigure, course_style, new_figure

COLUMNS = 48  # characters of a stream that fit into the figure


@course_style()
def plot_frequencies(corpus: Corpus, count: int = 30) -> CaptionedFigure:
    """Draw bars for the `count` commonest tokens of a text."""
    counts = token_counts(corpus.tokens, corpus.tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")[:count]
    shares = counts[order] / counts.sum()
    tokens = [corpus.tokenizer.decode([token]) for token in order]
    names = [spoken(token) for token in tokens]
    figure, axes = new_figure(9.0)
    axes.bar(range(len(names)), shares, color=BLUE)
    axes.set_xticks(range(len(names)), [visible(token) for token in tokens])
    kind = "characters" if corpus.tokenizer.kind == "char" else "tokens"
    axes.set(ylabel="share of the text", title=f"The {len(names)} commonest of {len(counts)} {kind}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return CaptionedFigure(
        figure,
        f"Bar chart of the {len(names)} commonest {kind}",
        f"{names[0]} is {shares[0]:.1%} of the text, and so on down to {names[-1]} with {shares[-1]:.1%}; together "
        f"they are {shares.sum():.1%}.",
    )


@course_style()
def plot_zipf(text: str) -> CaptionedFigure:
    """Plot the count of each character and each word over its rank, both axes logarithmic (Zipf, 1935)."""
    figure, axes = new_figure()
    said = []
    for name, things, color, mark in (("words", text.split(), BLUE, "-"), ("characters", text, ORANGE, "o")):
        counts = sorted(Counter(things).values(), reverse=True)
        axes.plot(range(1, len(counts) + 1), counts, mark, color=color, markersize=3.5, label=name)
        said.append(f"{len(counts):,} different {name}, the commonest {counts[0]:,} times")
    top = Counter(text.split()).most_common(1)[0][1]
    axes.plot([1, top], [top, 1], ":", color=GREY, label="count = largest / rank")
    axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="count", title="A few are common, most are rare")
    axes.set_ylim(0.7, None)
    axes.legend(frameon=False)
    description = f"{' and '.join(said)}; a dotted line falls as 1 / rank."
    return CaptionedFigure(
        figure, "Counts of words and characters over their ranks, both axes logarithmic", description
    )


# --------------------------------------------------------------------------------------------------------- streams


def stream_windows(text: str, batch_size: int, seq_length: int, epoch: int = 0) -> tuple[CharDataset, list[Batch]]:
    """Make the streams of a text and their windows in one epoch; a token is the position of a character in the text."""
    dataset = CharDataset(np.arange(len(text), dtype=np.uint32), batch_size, seq_length, seed=1)
    return dataset, list(dataset.windows(epoch))


@course_style()
def plot_streams(text: str, batch_size: int, seq_length: int, window: int = 0, epoch: int = 0) -> CaptionedFigure:
    """Draw a text as parallel streams, its windows as boxes, and mark one window.

    Args:
        text: a short text.
        batch_size: rows.
        seq_length: columns of a window.
        window: the window to mark; the last one if there are fewer.
        epoch: each epoch has a first window of another length.
    """
    dataset, windows = stream_windows(text, batch_size, seq_length, epoch)
    window = min(window, len(windows) - 1)
    begins = [0, *(each.end for each in windows[:-1])]
    rows, columns = dataset.batch_size, min(dataset.stream_length, COLUMNS)
    figure, axes = new_figure(9.5, 1.0 + 0.36 * rows)
    for number, (begin, each) in enumerate(zip(begins, windows, strict=True)):
        if begin < columns:
            marked = number == window
            width = min(each.end, columns) - begin
            color = ORANGE if marked else BLUE if number % 2 else GREEN
            box = {"facecolor": color, "edgecolor": color, "linewidth": 2.5 if marked else 0.8}
            axes.add_patch(Rectangle((begin, 0), width, rows, alpha=0.35 if marked else 0.12, **box))
            name = f"window {number}" if width >= 6 else f"{number}"
            axes.text(begin + width / 2, -0.25, name, ha="center", va="bottom", fontsize=9)
    style = {"ha": "center", "va": "center", "family": "DejaVu Sans Mono", "fontsize": 10}
    style["in_layout"] = False  # layout would take most of the time
    for row in range(rows):
        start = row * dataset.stream_length
        for column, character in enumerate(text[start : start + columns]):
            axes.text(column + 0.5, row + 0.5, visible(character), **style)
        axes.axhline(row, color="white", linewidth=1.5)
    more = dataset.stream_length - columns
    axes.set_xlim(-0.2, COLUMNS + 0.2)
    axes.set_ylim(rows + 0.1, -0.9)
    axes.set_yticks(np.arange(rows) + 0.5, [f"stream {row}" for row in range(rows)])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    going_on = f"; {more} more characters of each to the right" if more else ""
    streams = f"{rows} stream{'s' * (rows > 1)}"
    axes.set_title(f"{streams}, windows 0 to {len(windows) - 1}{going_on}", fontsize=10, loc="left")
    return CaptionedFigure(
        figure,
        f"The text laid out in {streams} of {dataset.stream_length} characters and cut into {len(windows)} windows",
        f"window {window} is marked; its row 0 reads {_read(text, windows[window].inputs[0])!r} and must predict "
        f"{_read(text, windows[window].targets[0])!r}.",
    )


def _read(text: str, positions: Sequence[int]) -> str:
    return "".join(text[int(position)] for position in positions)


def window_table(text: str, batch_size: int, seq_length: int, window: int = 0, epoch: int = 0) -> str:
    """List what each row of a window reads and must predict, as lines of text."""
    _, windows = stream_windows(text, batch_size, seq_length, epoch)
    chosen = windows[min(window, len(windows) - 1)]
    lines = [
        f"stream {row}  reads {_read(text, inputs)!r}  must predict {_read(text, targets)!r}"
        for row, (inputs, targets) in enumerate(zip(chosen.inputs, chosen.targets, strict=True))
    ]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------- the baselines


@course_style()
def plot_ladder(ladder: Mapping[str, float], networks: Mapping[str, float] | None = None) -> CaptionedFigure:
    """Plot bits per character of n-gram models, with networks for comparison.

    Args:
        ladder: from `ngram_ladder`: from the uniform model to the longest n-gram.
        networks: bits per character of networks on the same split, by name.
    """
    figure, axes = new_figure(8.0, 3.6)
    names, values = list(ladder), list(ladder.values())
    axes.plot(range(len(values)), values, "o-", color=BLUE, label="counting")
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:.2f}",
            (place, value),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=BLUE,
        )
    networks = networks or {}
    for (name, value), line in zip(networks.items(), itertools.cycle(("--", ":", "-.", "-")), strict=False):
        axes.axhline(value, color=ORANGE, linestyle=line, zorder=1, label=f"{name}: {value:.2f}")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="bits per character", ylim=(0, max(values) * 1.12), title="What counting achieves")
    axes.legend(frameon=False, loc="upper right")
    best = min(ladder, key=lambda name: ladder[name])
    beside = "".join(f"; {name} {value:.2f}" for name, value in networks.items())
    return CaptionedFigure(
        figure,
        "Line chart of bits per character for models that count",
        f"{names[0]} {values[0]:.2f}, {names[1]} {values[1]:.2f}; the best by counting is the {best} with "
        f"{ladder[best]:.2f}{beside}.",
    )
