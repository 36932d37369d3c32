"""Work in a separate thread, so that a panel stays responsive."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from charrnn.generation.generator import TextGenerator
from charrnn.generation.sampling_params import SEEDS
from charrnn.generation.text import TextStream


class Worker:
    """Run one piece of work at a time in a thread; it can be stopped.

    Attributes:
        error: the exception that the latest work raised, or None.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._idle = threading.Event()
        self._idle.set()

    @property
    def running(self) -> bool:
        """True if work is in progress."""
        return not self._idle.is_set()

    def start(self, work: Callable[[threading.Event], None], done: Callable[[], None] = lambda: None) -> None:
        """Start the work, unless other work is in progress.

        Args:
            work: takes an event, and returns soon after the event is set.
            done: called in the same thread after the work, even after an error; `running` is False by then.
        """
        if self.running:
            return
        self.error = None
        self._stopping.clear()
        self._idle.clear()
        # a daemon, so that an endless text does not keep the kernel alive
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
        """Ask the work to stop."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the work and `done`; False if they take longer than `timeout` seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()


LONGEST = 100_000  # characters to keep of a text

REFRESH = 1 / 30  # seconds between two updates of the view; faster updates slow the writing down


class Writer:
    """Write one text at a time in a thread, and keep its end.

    Args:
        show: called in that thread at most 30 times a second while the text grows, and once at the end.
        longest: the number of characters to keep.

    Attributes:
        text: the prompt and the characters written.
        characters: the number of characters written, including those no longer kept.
        latest: the number written since the last start or continuation.
        speed: of those, in characters per second.
        turns: the number of continuations.
        error: the exception that the latest work raised, or None.
    """

    def __init__(self, show: Callable[[], None] = lambda: None, longest: int = LONGEST):
        self._show, self._longest = show, longest
        self._worker = Worker()
        self.text, self.characters, self.latest, self.speed, self.turns = "", 0, 0, 0.0, 0
        self._stream: TextStream | None = None  # writes the text
        self._generator: TextGenerator | None = None
        self._given = 0  # characters of the prompt that the stream has still to give

    @property
    def running(self) -> bool:
        """True if the text is growing."""
        return self._worker.running

    @property
    def error(self) -> Exception | None:
        """The exception that the latest work raised, or None."""
        return self._worker.error

    def start(self, generator: TextGenerator, settings: Mapping[str, Any]) -> None:
        """Write a new text, unless one is growing.

        Args:
            generator: the network that writes.
            settings: of `TextGenerator.stream`; the text equals that of `TextGenerator.generate`.
        """

        def begin() -> TextStream:
            stream = generator.stream(**settings)
            self.text, self.characters, self.turns, self._given = "", 0, 0, len(settings["prompt"])
            return stream

        self._begin(generator, begin)

    def go_on(self, generator: TextGenerator, settings: Mapping[str, Any]) -> None:
        """Continue the text, each time with another seed, so that it does not repeat itself."""
        rest = {name: value for name, value in settings.items() if name != "prompt"}

        def begin() -> TextStream:
            self.turns += 1
            if rest["seed"] is not None:
                rest["seed"] = (rest["seed"] + self.turns) % SEEDS
            if self._stream is not None and self._generator is generator:
                return self._stream.go_on(**rest)
            stream = generator.stream(self.text, **rest)  # another network has to read the text first
            self.text, self._given = "", len(self.text)
            return stream

        self._begin(generator, begin)

    def stop(self) -> None:
        """Stop writing."""
        self._worker.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the text; False if it takes longer than `timeout` seconds."""
        return self._worker.wait(timeout)

    def _begin(self, generator: TextGenerator, begin: Callable[[], TextStream]) -> None:
        if not self.running:
            self.latest, self.speed = 0, 0.0
            self._worker.start(lambda stopping: self._write(generator, begin, stopping), self._show)

    def _write(self, generator: TextGenerator, begin: Callable[[], TextStream], stopping: threading.Event) -> None:
        self._stream, self._generator = begin(), generator  # wrong settings raise here and leave the text unchanged
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
