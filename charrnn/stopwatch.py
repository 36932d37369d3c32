"""Time spent at work: a process that is stopped (SIGSTOP) or a machine that sleeps does not count."""

import threading
import time
from types import TracebackType
from typing import Self

BEAT = 0.5  # seconds between two looks at the clock
PAUSE = 3.0  # a longer time between two looks was a pause


class Stopwatch:
    """Measures seconds inside a `with` block, without pauses of the whole process.

    A thread looks at the clock again and again. Only if the process or the machine stood still is there a long time
    between two looks; a slow step, however slow, counts in full.

    Args:
        seconds: where it starts.
    """

    def __init__(self, seconds: float = 0.0):
        self._seconds = seconds
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._last = time.perf_counter()
        threading.Thread(target=self._beat, name="stopwatch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._ended.set()

    def seconds(self) -> float:
        """The time so far."""
        with self._lock:  # whoever wakes up first after a pause takes note of it
            now = time.perf_counter()
            passed = now - self._last
            self._seconds += passed if passed < PAUSE else 0.0
            self._last = now
            return self._seconds

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self.seconds()
