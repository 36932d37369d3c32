"""A measurement in a process of its own: what one does to memory, threads or random numbers, the next does not feel."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from charrnn.errors import MeasurementError


def measure_apart(module: str, **arguments: Any) -> Any:
    """What `module`, run as a program, gives for `arguments`; it hands them to `answer`.

    Raises:
        MeasurementError: it failed, or was killed.
    """
    return json.loads(run_apart(["-m", module, json.dumps(arguments)]))


def run_apart(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What Python prints when it is run with `arguments`.

    Raises:
        MeasurementError: it failed, or was killed.
    """
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment)
    if result.returncode:
        raise MeasurementError(_reason(result))
    return result.stdout


def seconds_to_output(code: str) -> float:
    """Seconds from the start of Python until the first character that `code` prints.

    Raises:
        MeasurementError: it failed, or was killed, or printed nothing.
    """
    begin = time.perf_counter()
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        _, errors = process.communicate()
    if process.returncode or not first:
        raise MeasurementError(_reason(subprocess.CompletedProcess(command, process.returncode, "", errors)))
    return seconds


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode == -9:  # SIGKILL, a name that Windows does not have
        return "killed by the system, most likely out of memory"
    return (result.stderr.splitlines() or [f"exit code {result.returncode}"])[-1]


def peak_bytes() -> int | None:
    """The most memory that this process has had at once; None where the system does not say."""
    status = Path("/proc/self/status")  # of Linux; what getrusage says there includes the parent at the fork
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(measure: Callable[..., Any]) -> None:
    """Be the program: call `measure` with the arguments that `measure_apart` sent, and send back what it gives."""
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
