"""Time spent at work: a process that is stopped (SIGSTOP) or a machine that sleeps does not count."""

import threading
import time
from types import TracebackType
from typing import Self

BEAT = 0.05  # seconds between two looks at the clock

PAUSE = 3.0  # a longer time between two looks, with hardly any work in it, was a pause

WORK = 0.25  # of one processor


class Stopwatch:
    """Measures seconds inside a `with` block, without pauses of the whole process.

    A thread looks at the clock again and again, also while the others wait for a GPU, a disk or another process. So
    there is a long time between two looks only if the process or the machine stood still, or if a long computation
    kept the interpreter's lock. The processor time tells them apart: a slow step, however slow, counts in full.
    """

    def __init__(self) -> None:
        self._seconds = self._lap = 0.0
        self._last = time.perf_counter(), time.process_time()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="stopwatch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._ended.set()
        if threading.current_thread() is not self._thread:  # which may be the one that collects a generator
            self._thread.join()

    def seconds(self) -> float:
        """The time so far."""
        with self._lock:  # whoever wakes up first after a pause takes note of it
            now = time.perf_counter(), time.process_time()
            passed, worked = (b - a for a, b in zip(self._last, now, strict=True))
            self._seconds += passed if passed < PAUSE or worked > WORK * passed else 0.0
            self._last = now
            return self._seconds

    def lap(self) -> float:
        """The time since the last lap, or since the start."""
        begin, self._lap = self._lap, self.seconds()
        return self._lap - begin

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self.seconds()
