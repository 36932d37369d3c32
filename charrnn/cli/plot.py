"""`charrnn plot`."""

import argparse

from charrnn.cli import console
from charrnn.errors import ConfigError


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn plot`."""
    command.add_argument("runs", nargs="+", type="path", metavar="RUN", help="the directory of a run, finished or not")
    command.add_argument(
        "--out", type="figure_file", metavar="FILE", help="a .png or .svg file (default: RUN/plot.png)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw the metrics of a run, or compare several runs."""
    with console.notebook_libraries("plot"):
        from charrnn.lab.figures.base import save_figure
        from charrnn.lab.figures.runs import load_runs, plot_run, plot_runs

    several = len(arguments.runs) > 1
    if several and not arguments.out:
        raise ConfigError("--out: expected a file for the figure of several runs, got none")
    runs = load_runs(arguments.runs)
    figure = plot_runs(runs) if several else plot_run(*runs.values(), title=next(iter(runs)))
    out = arguments.out or arguments.runs[0] / "plot.png"
    save_figure(figure, out)
    console.say(figure.alt)
    console.write(f"{out}\n")
