"""`charrnn inspect`."""

import argparse

import charrnn
from charrnn.cli import console
from charrnn.cli.flags import add_shared

HISTORY = {"step": "{step:,}", "epoch": "{epoch:.2f}", "validation loss": "{loss:.4f}"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn inspect`."""
    add_shared(command, "checkpoint", "--json")


def run(arguments: argparse.Namespace) -> None:
    """Show the model in a checkpoint and how it was trained."""
    info = charrnn.get_model_info(arguments.checkpoint)
    if arguments.json:
        console.print_json(info)
        return
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
        "validation loss": console.number(training.get("val_loss"), "nats per token"),
        "validation bpc": console.number(training.get("val_bpc"), "bits per character"),
    }
    console.show("checkpoint", rows)
    history = progress.get("history", [])
    if history:
        shown = history[: -1 : max(1, len(history) // 10)] + history[-1:]
        rows_shown = [dict(zip(("step", "epoch", "loss"), row, strict=True)) for row in shown]
        console.show_rows("training history", rows_shown, HISTORY)
