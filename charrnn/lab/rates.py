"""Learning rates over a run, one small chart for each schedule."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from charrnn.lab.figures import BLUE, GREY, ORANGE, Picture, course_style, new_figure


@course_style()
def plot_schedules(schedules: Mapping[str, Callable[[float], float]], xlabel: str = "share of the budget") -> Picture:
    """Learning rate as a share of its peak, side by side.

    Args:
        schedules: by name a function of the share of the budget that is used up, 0 … 1.
        xlabel: what the share is of.
    """
    shares = np.linspace(0, 1, 401)
    figure, panels = new_figure(2.3 * len(schedules), 2.5, 1, len(schedules), sharey=True, squeeze=False)
    said = []
    for axes, (name, factor) in zip(panels[0], schedules.items(), strict=True):
        factors = [factor(float(share)) for share in shares]
        axes.plot(shares, factors, color=BLUE, linewidth=2)
        axes.set(title=name, ylim=(0, 1.05), xlim=(-0.02, 1.02))
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        said.append(
            f"{name} begins at {factors[0]:.2g}, is {factors[200]:.2g} half-way and {factors[-1]:.2g} at the end"
        )
    panels[0][0].set_ylabel("share of the peak rate")
    figure.supxlabel(xlabel, fontsize=11)
    return Picture(figure, f"Charts of the learning rate over the {xlabel}: {'; '.join(said)}.")


@course_style()
def plot_plateau(losses: Sequence[float], factors: Sequence[float]) -> Picture:
    """Losses above, and below the rate that follows each of them, falls marked.

    Args:
        losses: of the evaluations, in order.
        factors: share of the peak rate after each.
    """
    places = np.arange(1, len(losses) + 1)
    falls = [place for place in places[1:] if factors[place - 1] < factors[place - 2]]
    figure, (above, below) = new_figure(7.5, 3.8, 2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(places, losses, "o--", color=ORANGE, markersize=5, label="validation loss")
    best = np.minimum.accumulate(losses)
    above.step(places, best, where="post", color=GREY, linewidth=1.2, label="best so far")
    below.step(places, factors, where="post", color=BLUE, linewidth=2)
    for axes in (above, below):
        for place in falls:
            axes.axvline(place, color="black", linestyle=":", linewidth=1.2)
    above.set(ylabel="nats per token", title="A made-up loss, and the rate that waits for it")
    above.legend(frameon=False)
    below.set(xlabel="evaluation; dotted: the rate falls", ylabel="share of\nthe peak", ylim=(0, 1.1), xticks=places)
    when = ", ".join(str(place) for place in falls) or "none"
    alt = (
        f"Validation loss over {len(losses)} evaluations, from {losses[0]:.2f} to {losses[-1]:.2f}, and below it the "
        f"learning rate, which falls from {factors[0]:g} to {factors[-1]:g} of its peak at evaluations {when}."
    )
    return Picture(figure, alt)
