"""Run each measurement in its own process, isolated from the others, and let contenders take turns."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from charrnn.device import candidate_precisions
from charrnn.errors import MeasurementError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def with_bar(items: Iterable[T], doing: str = "measuring") -> Iterable[T]:
    """The same items with a progress bar, drawn only in a terminal."""
    return tqdm(items, desc=doing, disable=None, leave=False)


def take_turns(contenders: Sequence[K], rounds: int, measure: Callable[[K], T], doing: str) -> dict[K, list[T]]:
    """Measure each contender once in each round, so that a slow minute of the machine slows all of them.

    Returns:
        For each contender its result in each round.
    """
    results: dict[K, list[T]] = {contender: [] for contender in contenders}
    for contender in with_bar([*contenders] * rounds, doing):
        results[contender].append(measure(contender))
    return results


def supported(names: Iterable[str]) -> list[str]:
    """The contenders that this CPU can run: bf16 is in the names of those that need it."""
    has_bf16 = "bf16" in candidate_precisions(torch.device("cpu"))
    return [name for name in names if has_bf16 or "bf16" not in name]


def measure_apart(module: str, **arguments: Any) -> Any:
    """Run `module` as a program that calls `answer`, and return the result for `arguments`.

    Raises:
        MeasurementError: it failed, or was killed.
    """
    return json.loads(run_apart(["-m", module, json.dumps(arguments)]))


def run_apart(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run Python with `arguments` and return what it prints.

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
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - begin
        _, errors = process.communicate()
    if process.returncode or not first:
        raise MeasurementError(_reason(subprocess.CompletedProcess(command, process.returncode, "", errors)))
    return seconds


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    if result.returncode == -9:  # SIGKILL, which Windows does not define
        return "killed by the system, most likely out of memory"
    return (result.stderr.splitlines() or [f"exit code {result.returncode}"])[-1]


def peak_bytes() -> int | None:
    """Peak memory of this process; None if the system does not tell."""
    status = Path("/proc/self/status")  # Linux; there getrusage includes the parent's memory at the fork
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(measure: Callable[..., Any]) -> None:
    """Call `measure` with the arguments that `measure_apart` sent to this program, and print its result."""
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
