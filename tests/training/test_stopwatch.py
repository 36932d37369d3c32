import threading
import time

import pytest

from charrnn.training import stopwatch
from charrnn.training.stopwatch import Stopwatch


def test_a_slow_step_counts_in_full(monkeypatch):
    """A step much longer than PAUSE counts in full, because the thread keeps reading the clock."""
    monkeypatch.setattr(stopwatch, "BEAT", 0.01)
    monkeypatch.setattr(stopwatch, "PAUSE", 0.15)
    with Stopwatch() as watch:
        begin = time.perf_counter()
        time.sleep(0.4)
        assert watch.seconds() == pytest.approx(time.perf_counter() - begin, abs=0.1)
    assert "stopwatch" not in {thread.name for thread in threading.enumerate()}


def test_a_long_time_without_a_look_and_without_work_is_a_pause(monkeypatch):
    now, work = [0.0], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: work[0])
    watch = Stopwatch()
    # after a short wait, a pause, a computation that keeps the interpreter's lock, and a step of four threads
    for now[0], work[0], expected in ((1, 0, 1), (1000, 0.5, 1), (1100, 60, 101), (1101, 64, 102)):
        assert watch.seconds() == expected
    assert watch.lap() == 102
    now[0] += 2
    assert (watch.lap(), watch.lap(), watch.seconds()) == (2, 0, 104)
