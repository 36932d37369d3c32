"""Fixtures: a small text, a place for corpora that is not the checkout's, tiny settings."""

import contextlib
import io
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tests side by side must not share their cores

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

import charrnn.data.corpora
import charrnn.data.corpus
from charrnn.config import RunConfig

settings.register_profile("charrnn", deadline=None)  # how long something takes is measured, never asserted
settings.load_profile("charrnn")

# what makes a run tiny and its arithmetic the same every time
TINY = {
    "hidden_size": 8,
    "num_layers": 2,
    "batch_size": 4,
    "seq_length": 10,
    "max_steps": 12,
    "eval_interval": 5,
    "save_interval": 4,
    "log_interval": 3,
    "device": "cpu",
    "precision": "fp32",
    "backend": "torch",  # a choice by time would not be the same twice
    "threads": 1,
}


def killed_at_each_touch(action: Callable[[], object]) -> Iterator[int]:
    """Run `action` in forked processes, the n-th of them killed at its n-th touch of the disk, until one survives.

    Yields the exit code of each: 9 for a kill, 0 for the last.
    """
    for touch in itertools.count(1):
        child = os.fork()
        if child == 0:
            touches = itertools.count(1)
            sys.addaudithook(
                lambda event, _: event.startswith(("open", "os.")) and next(touches) == touch and os._exit(9)  # noqa: B023
            )
            action()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield code
        if code != 9:
            return


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    """A process with pipes for its output; it and its children end with the `with` block whatever happens."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError, AttributeError):  # Windows has no groups
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def failing_stream(failure: str) -> Iterator[TextIO | None]:
    """A text stream that fails in one of four ways."""
    if failure == "none":
        yield None
        return
    stream = io.StringIO()
    if failure == "nobody reads":
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w", buffering=1)
    elif failure == "no space":
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full on this system")
        stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115 (closed below)
    else:
        stream.close()
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError):
            stream.close()


@pytest.fixture(scope="session")
def text() -> str:
    """3,000 characters of made-up words."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcde", k=generator.randint(1, 6))) for _ in range(40)]
    return "\n".join(" ".join(generator.choices(words, k=6)) for _ in range(200))[:3000]


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """Corpora and the token cache land in a temporary folder."""
    folder = tmp_path / "data"
    for module in (charrnn.data.corpus, charrnn.data.corpora):
        monkeypatch.setattr(module, "default_data_dir", lambda: folder)
    return folder


@contextlib.contextmanager
def globals_kept() -> Iterator[None]:
    """Fails if the block changes what belongs to the whole process and so to the user, such as PyTorch's threads."""
    before = global_state()
    yield
    changed = [name for name, value in global_state().items() if value != before[name]]
    assert not changed, f"changed for the whole process: {', '.join(changed)}"


def global_state() -> dict[str, Any]:
    import matplotlib as mpl
    import numpy as np
    import torch

    with ThreadPoolExecutor(1) as new:
        threads_of_new_threads = new.submit(torch.get_num_threads).result()
    return {
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_num_threads() in a new thread": threads_of_new_threads,
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "PyTorch's random numbers": torch.get_rng_state().tolist(),
        "NumPy's random numbers": repr(np.random.get_state(legacy=False)),  # noqa: NPY002 (the global ones are meant)
        "Python's random numbers": random.getstate(),
        "matplotlib.rcParams": dict(mpl.rcParams),
        "matplotlib.get_backend()": mpl.get_backend(auto_select=False),
        "os.getcwd()": os.getcwd(),
    }


@pytest.fixture(autouse=True)
def _globals_kept(request):
    """No function of the lab leaves a global setting changed. PyTorch has two threads here, so that one is a change."""
    if "lab" not in request.path.parts:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(1)  # a test that sets the seed that another has set changes it, too
    try:
        with globals_kept():
            yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def text_file(tmp_path, text):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def tiny(text_file) -> RunConfig:
    """A run of twelve steps on the small text."""
    return RunConfig().override({**TINY, "data": str(text_file)})
