"""`charrnn bench`: runs a measurement of `charrnn.bench` and prints its report. Only the one asked for is imported."""

import argparse
import importlib
from typing import Any

from charrnn.cli import console
from charrnn.cli.flags import Parser, add_settings, add_shared, given_config
from charrnn.config import config_fields

MEASUREMENTS = {
    "train": "Time training and what it learns, beside PyTorch's LSTM in plain loops and on shuffled windows.",
    "sample": "Time how fast text is written, beside plain loops, and how soon the first character comes.",
    "batch-size": "Train each batch size for the same time, and name the fastest and the best.",
    "learning-rate": "Raise the learning rate on a throwaway model, and suggest where its loss falls most steeply.",
    "ladder": "Train RNN, GRU, LSTM and LayerNorm-LSTM at equal parameters and time, each at its best learning rate.",
    "devices": "Time training on every device, precision and backend, and on the CPU with 1, 2, 4, ... threads.",
    "data": "Time how a text becomes batches, beside the usual way and at growing sizes.",
    "kernels": "Time a training step on each backend, for each cell and size.",
}


class _Measurement(Parser):
    """The parser of one measurement, which imports its module as soon as it parses."""

    name = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the flags of the measurement, then parse."""
        with console.notebook_libraries(f"bench {self.name}"):
            measurement = importlib.import_module(f"charrnn.bench.{self.name.replace('-', '_')}")
        fields = [field for field in config_fields() if field[2] in measurement.CONFIG_FLAGS]
        add_settings(self, fields)
        measurement.add_arguments(self)
        add_shared(self, "--json")
        self.set_defaults(measurement=measurement, parser=self)
        return super().parse_known_args(args, namespace)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the measurements."""
    kinds = command.add_subparsers(title="measurements", required=True, metavar="NAME", parser_class=_Measurement)
    for name, about in MEASUREMENTS.items():
        kinds.add_parser(name, help=about, description=about).name = name


def run(arguments: argparse.Namespace) -> None:
    """Compare speed and quality with what you would run instead."""
    from charrnn.bench.report import Report

    figure = getattr(arguments.measurement, "FIGURE", "") if getattr(arguments, "out", None) else ""
    if figure:
        with console.notebook_libraries("--out"):
            from charrnn.lab.figures import base, runs
    report: Report = arguments.measurement.report(given_config(arguments), arguments)
    if figure:
        base.save_figure(getattr(runs, figure)(**report.value), arguments.out)
    if arguments.json:
        console.print_json(report.value)
        return
    for table in report.tables:
        console.show_rows(table.title, table.rows, table.columns)
    for note in report.notes:
        console.say(note)
    for sentence in report.conclusions:
        print(sentence)
