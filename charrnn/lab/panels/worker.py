"""Work in a thread of its own, so that a panel stays responsive."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from charrnn.generation.generator import TextGenerator, TextStream
from charrnn.generation.sampling_params import SEEDS


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


LONGEST = 100_000  # characters of a text that are kept

REFRESH = 1 / 30  # seconds between two updates of the view; more often costs speed and shows nothing


class Writer:
    """Writes one text at a time in a thread of its own; of an endless one it keeps the end.

    Args:
        show: called in that thread while the text grows, at most 30 times a second, and once when it is done.
        longest: characters that are kept.

    Attributes:
        text: the prompt and what follows it.
        characters: how many were written, those no longer kept with them.
        latest: how many of them since the text was begun or gone on with.
        speed: the latest per second.
        turns: how often the text was gone on with.
        error: what the latest piece of work raised, None if nothing.
    """

    def __init__(self, show: Callable[[], None] = lambda: None, longest: int = LONGEST):
        self._show, self._longest = show, longest
        self._worker = Worker()
        self.text, self.characters, self.latest, self.speed, self.turns = "", 0, 0, 0.0, 0
        self._stream: TextStream | None = None  # writes the text, with
        self._generator: TextGenerator | None = None
        self._given = 0  # characters of the prompt that are to come before those that are written

    @property
    def running(self) -> bool:
        """Whether the text is growing."""
        return self._worker.running

    @property
    def error(self) -> Exception | None:
        """What the latest piece of work raised."""
        return self._worker.error

    def start(self, generator: TextGenerator, settings: Mapping[str, Any]) -> None:
        """Write a new text; nothing happens while one is growing.

        Args:
            generator: writes it.
            settings: as `TextGenerator.stream` takes them; the text is that of `TextGenerator.generate`.
        """

        def begin() -> TextStream:
            stream = generator.stream(**settings)
            self.text, self.characters, self.turns, self._given = "", 0, 0, len(settings["prompt"])
            return stream

        self._begin(generator, begin)

    def go_on(self, generator: TextGenerator, settings: Mapping[str, Any]) -> None:
        """Go on from the text so far, whatever the prompt; each time with another seed, lest it repeat itself."""
        rest = {name: value for name, value in settings.items() if name != "prompt"}

        def begin() -> TextStream:
            self.turns += 1
            if rest["seed"] is not None:
                rest["seed"] = (rest["seed"] + self.turns) % SEEDS
            if self._stream is not None and self._generator is generator:
                return self._stream.go_on(**rest)
            stream = generator.stream(self.text, **rest)  # another network has to read the text
            self.text, self._given = "", len(self.text)
            return stream

        self._begin(generator, begin)

    def stop(self) -> None:
        """End the text after the characters that are at work."""
        self._worker.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when nothing is written any more, True, or after `timeout` seconds, False."""
        return self._worker.wait(timeout)

    def _begin(self, generator: TextGenerator, begin: Callable[[], TextStream]) -> None:
        if not self.running:
            self.latest, self.speed = 0, 0.0
            self._worker.start(lambda stopping: self._write(generator, begin, stopping), self._show)

    def _write(self, generator: TextGenerator, begin: Callable[[], TextStream], stopping: threading.Event) -> None:
        self._stream, self._generator = begin(), generator  # the text stays as it is if the settings are wrong
        began, shown = time.monotonic(), 0.0
        for piece in self._stream:
            now = time.monotonic()
            self.text = (self.text + piece)[-self._longest :]
            if self._given:
                self._given -= len(piece)
                began = now
            else:
                self.characters += len(piece)
                self.latest += len(piece)
                self.speed = self.latest / max(now - began, 1e-9)
            if stopping.is_set():
                return
            if now - shown >= REFRESH:
                self._show()
                shown = now
