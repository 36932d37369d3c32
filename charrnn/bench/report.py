"""The contract between a measurement and the command line.

Each file of this folder that can be run owns its flags and columns:

    CONFIG_FLAGS                names of the settings of a run that it takes as flags
    FIGURE                      optional: the function in `charrnn.lab.figures.runs` that draws the value for `--out`
    add_arguments(parser)       adds its own flags; `type` may be a name from `charrnn.cli.flags.TYPES`
    report(config, arguments)   measures, and returns a `Report`
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows to print.

    Attributes:
        title: above the table.
        rows: mappings that hold the values.
        columns: for each heading the format of its cells, such as `"{speed:,.0f}"`; see `charrnn.cli.console`.
    """

    title: str
    rows: Iterable[Mapping[str, Any]]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """The result of a measurement.

    Attributes:
        value: what `--json` prints instead of all below.
        tables: printed first.
        notes: explain the tables; printed on standard error.
        conclusions: printed last.
    """

    value: Any
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    conclusions: Sequence[str] = ()


def add_config_file(parser: argparse.ArgumentParser) -> None:
    """Add a YAML file of settings."""
    parser.add_argument("config", nargs="?", type="path", help="YAML file of settings; flags override it")


def add_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the flag for the number of rounds."""
    parser.add_argument("--rounds", type="count", default=rounds, metavar="N", help="measurements of each")


def add_seconds(parser: argparse.ArgumentParser, seconds: float, about: str) -> None:
    """Add the flag for the seconds of each measurement."""
    parser.add_argument("--seconds", type="positive", default=seconds, metavar="S", help=about)


def describe_shape(num_layers: int, hidden_size: int, batch_size: int, seq_length: int) -> str:
    """Layers by units, streams by tokens, as in `2x128, 50x50`."""
    return f"{num_layers}x{hidden_size}, {batch_size}x{seq_length}"
