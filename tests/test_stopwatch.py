import time

import pytest

from charrnn import stopwatch
from charrnn.stopwatch import Stopwatch


def test_it_counts_from_where_it_starts_and_a_slow_step_in_full(monkeypatch):
    """A step of many times the longest look counts, for the thread looks at the clock meanwhile."""
    monkeypatch.setattr(stopwatch, "BEAT", 0.01)
    monkeypatch.setattr(stopwatch, "PAUSE", 0.15)
    with Stopwatch(100.0) as watch:
        begin = time.perf_counter()
        time.sleep(0.4)
        assert watch.seconds() == pytest.approx(100 + time.perf_counter() - begin, abs=0.1)


def test_a_long_time_without_a_look_is_a_pause(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    watch._last = 0.0
    for now[0], expected in ((1.0, 1.0), (3.0, 3.0), (1000.0, 3.0), (1001.0, 4.0)):
        assert watch.seconds() == expected
