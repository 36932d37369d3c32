"""Work in a thread of its own, so that the buttons of a widget are heard while it goes on."""

import threading
from collections.abc import Callable


class Worker:
    """Does one piece of work at a time, which can be asked to stop; what it raises is kept.

    Attributes:
        error: what the latest work raised, None if nothing.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._idle = threading.Event()
        self._idle.set()

    @property
    def running(self) -> bool:
        """Whether work is going on."""
        return not self._idle.is_set()

    def start(self, work: Callable[[threading.Event], None], done: Callable[[], None] = lambda: None) -> None:
        """Begin; nothing happens if work is going on.

        Args:
            work: is given an event and returns soon after it is set.
            done: called in the same thread after the work, however it ended; `running` is False by then.
        """
        if self.running:
            return
        self.error = None
        self._stopping.clear()
        self._idle.clear()
        # a daemon, so that closing a notebook does not wait for an endless text
        self._thread = threading.Thread(target=self._run, args=(work, done), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[threading.Event], None], done: Callable[[], None]) -> None:
        try:
            work(self._stopping)
        except Exception as error:
            self.error = error
        self._idle.set()
        done()

    def stop(self) -> None:
        """Ask the work to stop; it does so soon after."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when the work and what follows it are done, True, or after `timeout` seconds, False."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()
