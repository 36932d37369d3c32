"""Training and validation loss side by side, and where early stopping would have stopped."""

from collections.abc import Mapping, Sequence
from typing import Any

from charrnn.lab.figures import BLUE, ORANGE, Picture, course_style, new_figure


@course_style()
def plot_overfitting(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], stops: Mapping[str, int | None] | None = None
) -> Picture:
    """A chart for each run: training loss, validation loss with its lowest point marked, and the stop.

    Args:
        runs: records as in `metrics.jsonl` by name; each run was logged and evaluated.
        stops: step at which each run would have been stopped, None where it would not.
    """
    figure, panels = new_figure(3.2 * len(runs), 3.3, 1, len(runs), sharey=True, squeeze=False)
    said = []
    for axes, (name, records) in zip(panels[0], runs.items(), strict=True):
        points = {
            event: [(record["step"], record["loss"]) for record in records if record["event"] == event]
            for event in ("logged", "evaluated")
        }
        axes.plot(*zip(*points["logged"], strict=True), "-", color=BLUE, label="training")
        axes.plot(*zip(*points["evaluated"], strict=True), "o--", color=ORANGE, markersize=4, label="validation")
        step, lowest = min(points["evaluated"], key=lambda point: point[1])
        axes.plot(step, lowest, "*", color=ORANGE, markersize=15, markeredgecolor="black", label="its lowest")
        stop = (stops or {}).get(name)
        if stop is not None:
            axes.axvline(stop, color="black", linestyle=":", linewidth=1.5, label="early stop")
        axes.set(title=name, xlabel="step", xlim=(0, None))
        stopped = "never stopped" if stop is None else f"stopped at {stop}"
        said.append(
            f"{name}: training ends at {points['logged'][-1][1]:.2f}, validation is lowest, {lowest:.2f}, at step "
            f"{step}, ends at {points['evaluated'][-1][1]:.2f}" + (f", {stopped}" if stops else "")
        )
    panels[0][0].set_ylabel("nats per character")
    panels[0][0].legend(frameon=False)
    return Picture(figure, f"Training and validation loss over the steps; {'; '.join(said)}.")
