"""Profiles: how much work a notebook does, and a check of the machine."""

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
    """The amount of work that a notebook does.

    Attributes:
        name: `ci`, `laptop` or `gpu`.
        budget: of the models that the reader trains, as settings of a run: steps in `ci`, where the time of a step is
            unpredictable, else seconds.
        checkpoints: folder for these models. In `ci` it is temporary, so that tests never replace a reader's models;
            otherwise it is the course's `checkpoints/` or, if that is read-only, one in the user's data folder.
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
    """Read the profile from the environment variable CHARRNN_PROFILE; the default is `laptop`.

    Raises:
        ConfigError: there is no such profile.

    Warns:
        UserWarning: the course's folder is read-only; the message says where models are saved instead.
    """
    name = os.environ.get("CHARRNN_PROFILE", "laptop")
    if name not in PROFILES:
        raise ConfigError(f"CHARRNN_PROFILE: expected one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]()


def check_machine() -> Table:
    """List the versions and devices that the course uses on this machine."""
    table = Table("what", "here", title="this machine", title_justify="left")
    table.add_row("Python", platform.python_version())
    for package in ("torch", "jupyterlab", "ipywidgets", "matplotlib", "charrnn"):
        table.add_row(package, importlib.metadata.version(package))
    for row in describe_devices():
        table.add_row(row["device"], f"{row['name']}; {row['size']}; {row['precisions']}")
    table.add_row("models run on", select_device().type)
    return table
