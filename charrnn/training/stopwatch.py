"""Measure working time: the time while a process is stopped (SIGSTOP) or the machine sleeps is not counted."""

import threading
import time
from typing import Self

BEAT = 0.05  # seconds between two readings of the clock

PAUSE = 3.0  # a longer gap between two readings, with hardly any processor time used, is a pause

WORK = 0.25  # of one processor, the least use that counts as work


class Stopwatch:
    """Measures the seconds inside a `with` block, without pauses of the whole process.

    A thread reads the clock again and again, even while the others wait for a GPU, a disk or another process. A long
    gap between two readings means that the process or the machine stood still, or that a long computation held the
    interpreter's lock. The processor time tells the two apart, so even a very slow step counts in full.
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

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if threading.current_thread() is not self._thread:  # this thread may be the one that collects a generator
            self._thread.join()

    def seconds(self) -> float:
        """The time so far."""
        with self._lock:  # the first thread to run after a pause detects it
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
