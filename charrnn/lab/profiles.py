"""Where a notebook runs: how much work it may do, and what this machine has."""

import importlib.metadata
import os
import platform
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from rich.table import Table

from charrnn.atomic import is_writable
from charrnn.device import describe_devices, select_device
from charrnn.errors import ConfigError


@dataclass(frozen=True)
class Profile:
    """How much work a notebook does.

    Attributes:
        name: `ci`, `laptop` or `gpu`.
        budget: for the models that the reader waits for, as settings of a run: steps in `ci`, where the time that a
            step takes is anybody's guess, else seconds.
        checkpoints: folder for those models; in `ci` a temporary one, so that tests never replace a reader's own;
            otherwise the course's `checkpoints/` or, where it is read-only, one in the user's own data folder.
    """

    name: str
    budget: dict[str, float]
    checkpoints: Path


OWN = Path("../checkpoints")  # as seen from notebooks/

PROFILES = {
    "ci": lambda: Profile("ci", {"max_steps": 150}, Path(tempfile.mkdtemp(prefix="charrnn-"))),
    "laptop": lambda: Profile("laptop", {"max_seconds": 60}, _own_checkpoints()),
    "gpu": lambda: Profile("gpu", {"max_seconds": 60}, _own_checkpoints()),
}


def _own_checkpoints() -> Path:
    if is_writable(OWN):
        return OWN
    folder = platformdirs.user_data_path("charrnn") / "checkpoints"
    warnings.warn(f"{OWN.resolve()} is read-only, so your own models are saved in {folder}", stacklevel=4)
    return folder


def profile() -> Profile:
    """The profile that the environment variable CHARRNN_PROFILE names; `laptop` if it is not set.

    Raises:
        ConfigError: no such profile.

    Warns:
        UserWarning: the course's folder is read-only; the message says where models are saved instead.
    """
    name = os.environ.get("CHARRNN_PROFILE", "laptop")
    if name not in PROFILES:
        raise ConfigError(f"CHARRNN_PROFILE: expected one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]()


def check_machine() -> Table:
    """A table of what the course needs and what is here."""
    table = Table("what", "here", title="this machine", title_justify="left")
    table.add_row("Python", platform.python_version())
    for package in ("torch", "jupyterlab", "ipywidgets", "matplotlib", "charrnn"):
        table.add_row(package, importlib.metadata.version(package))
    for row in describe_devices():
        table.add_row(row["device"], f"{row['name']}; {row['size']}; {row['precisions']}")
    table.add_row("models run on", select_device().type)
    return table
