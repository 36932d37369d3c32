"""`charrnn inspect`, `charrnn plot` and `charrnn devices`."""

import argparse

import charrnn
from charrnn.cli import console
from charrnn.cli.evaluate import _number
from charrnn.errors import ConfigError


def inspect(arguments: argparse.Namespace) -> int:
    """Show what a checkpoint is and how it was trained."""
    info = charrnn.get_model_info(arguments.checkpoint)
    if arguments.json:
        console.print_json(info)
        return 0
    training = info["training"]
    progress = training.get("progress", {})
    rows = {
        "checkpoint": info["path"],
        "size": f"{info['bytes']:,} bytes",
        **info["model"],
        "vocabulary": f"{info['vocab_size']} tokens",
        "parameters": f"{info['num_parameters']:,}",
        **{name: " x ".join(map(str, shape)) for name, shape in info["parameters"].items()},
        "trained on": training.get("corpus", "unknown"),
        "steps": f"{training.get('step', 0):,}",
        "epochs": f"{training.get('epoch', 0):.2f}",
        "seconds": f"{progress.get('seconds', 0):.0f}",
        "precision": progress.get("precision", "unknown"),
        "backend": progress.get("backend", "unknown"),
        "validation loss": _number(training.get("val_loss"), "nats per token"),
        "validation bpc": _number(training.get("val_bpc"), "bits per character"),
    }
    console.show("checkpoint", rows)
    history = progress.get("history", [])
    if history:
        shown = history[: -1 : max(1, len(history) // 10)] + history[-1:]
        names = ("step", "epoch", "validation loss")
        cells = ((f"{step:,}", f"{epoch:.2f}", f"{loss:.4f}") for step, epoch, loss in shown)
        console.show_rows("training history", [dict(zip(names, row, strict=True)) for row in cells])
    return 0


def plot(arguments: argparse.Namespace) -> int:
    """Draw what a run has told, or compare several runs."""
    with console.libraries_of_the_notebooks("plot"):
        from charrnn.lab.figures.base import save_figure
        from charrnn.lab.figures.runs import load_runs, plot_run, plot_runs

    several = len(arguments.runs) > 1
    if several and not arguments.out:
        raise ConfigError("--out: expected a file for the figure of several runs, got none")
    runs = load_runs(arguments.runs)
    picture = plot_runs(runs) if several else plot_run(*runs.values(), title=next(iter(runs)))
    out = arguments.out or arguments.runs[0] / "plot.png"
    save_figure(picture, out)
    console.say(picture.alt)
    console.write(f"{out}\n")
    return 0


def devices(arguments: argparse.Namespace) -> int:
    """Show where models can run here."""
    from charrnn.device import describe_devices, select_device
    from charrnn.kernels import availability as installed
    from charrnn.models.recurrent import numba_lstm

    chosen = select_device()
    rows = describe_devices()
    for row in rows:
        row["device auto"] = "chosen" if row["device"].split(":")[0] == chosen.type and row is rows[0] else ""
        row["numba"] = "-" if row["device"] != "cpu" else "works" if numba_lstm() else installed.why_numba_unavailable()
    if arguments.json:
        console.print_json(rows)
        return 0
    console.show_rows("devices", rows)
    return 0
