"""A recurrent network drawn as it reads: one column for each character, and the way that gradients take back."""

from typing import Any

from charrnn.characters import spoken
from charrnn.lab.figures import BLUE, GREEN, GREY, ORANGE, Picture, course_style, new_figure
from charrnn.lab.glyphs import MATHEMATICS

ROWS = {"x": 0.0, "h": 1.3, "z": 2.6, "L": 3.9}  # inputs, states, logits, losses; columns are 1 apart
COLORS = {"x": GREEN, "h": BLUE, "z": GREY, "L": GREY}


@course_style()
def plot_unrolled(inputs: str, targets: str | None = None, backward: bool = False) -> Picture:
    """A network unrolled over a few characters.

    Args:
        inputs: what it reads, one column each.
        targets: what it is to predict after each; None leaves logits and losses out.
        backward: show the gradients that come back, dashed, where else the values go forward.

    Raises:
        ValueError: not one target for each input.
    """
    if targets is not None and len(inputs) != len(targets):
        raise ValueError(f"expected a target for each input, got {len(targets)} for {len(inputs)}")
    rows = list(ROWS) if targets else ["x", "h"]
    figure, axes = new_figure(1.3 + 1.3 * len(inputs), 3.2 if targets else 1.8)
    _box(axes, 0, "h", 0)
    for t, read in enumerate(inputs, 1):
        for row in rows:
            _box(axes, t, row, t)
        _arrow(axes, (t - 1 + 0.23, ROWS["h"]), (t - 0.23, ROWS["h"]), "$W_{hh}$", backward)
        for below, above, weight in (("x", "h", "$W_{ih}$"), ("h", "z", "$W_{out}$"), ("z", "L", ""))[: len(rows) - 1]:
            _arrow(axes, (t, ROWS[below] + 0.31), (t, ROWS[above] - 0.31), weight, backward)
        axes.text(t, -0.42, f"reads {spoken(read)}", ha="center", va="top")
        if targets:
            axes.text(t, ROWS["L"] + 0.42, f"must predict {spoken(targets[t - 1])}", ha="center", va="bottom")
    axes.set(xlim=(-0.4, len(inputs) + 0.5), ylim=(-0.75, 4.65 if targets else 1.75))
    axes.set_axis_off()
    return Picture(figure, _sentence(inputs, targets, backward))


def _sentence(inputs: str, targets: str | None, backward: bool) -> str:
    read = ", ".join(map(spoken, inputs))
    above = f", h the logits z, and these the losses L of {', '.join(map(spoken, targets))}" if targets else ""
    way = "gradients flow back along every arrow" if backward else "values flow forward along every arrow"
    return (
        f"A network unrolled over {len(inputs)} characters ({read}): x feeds h, h the next h{above}; {way}, and every "
        "column has the same weights."
    )


def _box(axes: Any, column: float, row: str, index: int) -> None:
    box = {"boxstyle": "round,pad=0.32", "facecolor": "white", "edgecolor": COLORS[row], "linewidth": 1.8}
    look = {"ha": "center", "va": "center", "fontsize": 12, "bbox": box, "gid": MATHEMATICS}
    axes.text(column, ROWS[row], f"${row}_{{{index}}}$", **look)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], weight: str, backward: bool) -> None:
    """From `start` to `end`, or the other way round and dashed; the weight stands above it or to its right."""
    tail, tip = (end, start) if backward else (start, end)
    color = ORANGE if backward else GREY
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "linestyle": "--" if backward else "-"}
    axes.annotate("", tip, tail, arrowprops=style | {"shrinkA": 3, "shrinkB": 3})
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    if start[1] == end[1]:
        axes.text(x, y + 0.12, weight, color=color, ha="center", va="bottom", gid=MATHEMATICS)
    else:
        axes.text(x + 0.06, y, weight, color=color, ha="left", va="center", gid=MATHEMATICS)
