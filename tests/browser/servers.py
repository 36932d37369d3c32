"""Servers for the browser, in temporary folders; they end with the tests."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
TOKEN = "charrnn"
SHIPPED = ("shakespeare-lstm", "shakespeare-rnn")  # of checkpoints/; the tests do not see a reader's own runs
# folders of Jupyter and its kernels: empty ones, so that the machine's settings do not matter
FOLDERS = (
    "HOME",
    "TMPDIR",
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
    "IPYTHONDIR",
    "MPLCONFIGDIR",
)
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "docmanager-extension/plugin": {"autosave": False},
    # render cells off the screen too, so that selectors find them
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
}


def copy_of_the_course(folder: Path) -> Path:
    """Copy notebooks, configs and shipped checkpoints, laid out as in the checkout."""
    for name in ("notebooks", "config", *(f"checkpoints/{name}" for name in SHIPPED)):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Make the environment of a server that keeps its files in `folder` and uses the smallest profile."""
    own = {name: folder / name.lower() for name in FOLDERS}
    for path in own.values():
        path.mkdir(parents=True)
    for name, values in SETTINGS.items():
        file = own["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    return {**os.environ, **{name: str(path) for name, path in own.items()}, "CHARRNN_PROFILE": "ci"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on a copy of the course; yield its address."""
    root, port = copy_of_the_course(folder / "course"), free_port()
    flags = (
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",  # as window.jupyterapp
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.extension_manager=readonly",
    )
    with running(["jupyterlab", *flags], root, folder, f"http://127.0.0.1:{port}/api"):
        yield f"http://127.0.0.1:{port}/lab?token={TOKEN}"


@contextmanager
def voila(folder: Path, notebook: str) -> Iterator[str]:
    """Serve a notebook of a copy of the course as `make playground` does; yield its address."""
    root, port = copy_of_the_course(folder / "course"), free_port()
    flags = ("--no-browser", f"--Voila.port={port}", *flags_of_a_page())
    with running(["voila", notebook, *flags], root, folder, f"http://127.0.0.1:{port}/voila/static/voila.js"):
        yield f"http://127.0.0.1:{port}/"


def flags_of_a_page() -> list[str]:
    """Read the options of Voilà from the Makefile."""
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    return shlex.split(re.search(r"^PAGE := (.*)$", makefile, re.MULTILINE)[1])


@contextmanager
def running(arguments: list[str], root: Path, folder: Path, answers: str, patience: float = 60.0) -> Iterator[None]:
    """Run a Python module as a server, from its first answer.

    Args:
        arguments: the module and its arguments.
        root: the working directory.
        folder: for its files and `server.log`.
        answers: an address that it serves when it is up.
        patience: seconds to wait for that.
    """
    leash = [sys.executable, str(Path(__file__).with_name("leash.py"))]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*leash, sys.executable, "-m", *arguments],
            cwd=root,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to the tests, which then end the server
        )
        try:
            wait_for_answer(server, answers, patience, folder / "server.log")
            yield
        finally:
            server.stdin.close()
            server.wait()


def wait_for_answer(server: subprocess.Popen[bytes], address: str, patience: float, log: Path) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return  # an error is an answer, too
        except OSError:
            time.sleep(0.1)
        else:
            return
    state = f"ended with code {server.returncode}" if server.poll() is not None else f"silent for {patience:.0f} s"
    raise RuntimeError(f"expected an answer at {address}, got a server that is {state}; see {log}")
