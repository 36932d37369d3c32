"""`charrnn devices`."""

import argparse

from charrnn.cli import console
from charrnn.cli.flags import add_shared


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn devices`."""
    add_shared(command, "--json")


def run(arguments: argparse.Namespace) -> None:
    """Show where models can run here."""
    from charrnn.device import describe_devices, select_device
    from charrnn.kernels.availability import why_numba_unavailable
    from charrnn.models.recurrent import numba_lstm

    rows = describe_devices()
    for row in rows:
        chosen = row is rows[0] and row["device"].split(":")[0] == select_device().type
        row["device auto"] = "chosen" if chosen else ""
        row["numba"] = "-" if row["device"] != "cpu" else "works" if numba_lstm() else why_numba_unavailable()
    if arguments.json:
        console.print_json(rows)
    else:
        console.show_rows("devices", rows, {name: f"{{{name}}}" for name in rows[0]})
