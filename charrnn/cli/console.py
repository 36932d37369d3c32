"""Output of the commands: lines, tables, streamed texts and progress bars."""

import contextlib
import functools
import json
import math
import os
import re
import shlex
import shutil
import string
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from charrnn.data.characters import escape, escape_controls

FLUSHES = 60  # per second, at most: each is a system call, and faster updates cannot be seen

# ------------------------------------------------------------------------------------------------------------- streams


class _Forgiving:
    """A standard stream that silently discards all output after a write has failed."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard what is buffered."""
        self._try(self._stream.flush)

    def _try(self, method: Callable[..., object], *arguments: str) -> None:
        try:
            method(*arguments)
        except OSError:
            discard(self._stream)


def discard(stream: TextIO) -> None:
    """Send what is buffered in a standard stream, and all that follows, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    stream.flush()


@contextlib.contextmanager
def forgiving(name: str) -> Iterator[None]:
    """In the `with` block a failing `sys.stdout` or `sys.stderr` goes silent instead of raising an OSError.

    It may be closed, the reader of its pipe may have left, its terminal may be gone or its disk full.
    """
    before = getattr(sys, name)
    with contextlib.ExitStack() as stack:
        if before is None or before.closed:  # the null device takes its number before another file does
            stream: Any = stack.enter_context(open(os.devnull, "w"))
        else:
            stream = _Forgiving(before)
        setattr(sys, name, stream)
        try:
            yield
        finally:
            setattr(sys, name, before)


def write(text: str, raw: bool = False, stream: TextIO | None = None) -> None:
    """Write to a stream, by default standard output, and flush; a terminal gets escapes for controls unless `raw`."""
    stream = stream or sys.stdout
    stream.write(escape_controls(text) if stream.isatty() and not raw else text)
    stream.flush()


def write_stream(pieces: Iterable[str], raw: bool = False, end: str = "\n", quiet: bool = False) -> None:
    """Write pieces of text as they come, then `end`; pieces that come at almost the same time are written together.

    After an error all pieces so far are written. If the first piece takes seconds, a notice says why, unless `quiet`.
    """
    patience = "still getting ready; the first text on a machine waits some seconds for what is compiled once"
    waiting = threading.Timer(2.0, lambda: None if quiet else say(patience))
    waiting.daemon = True
    waiting.start()
    ready: list[str] = []
    due = 0.0
    try:
        for number, piece in enumerate(pieces):
            if number == 1:
                waiting.cancel()
            ready.append(piece)
            if (now := time.monotonic()) >= due:
                write("".join(ready), raw)
                ready.clear()
                due = now + 1 / FLUSHES
    finally:
        waiting.cancel()
        write("".join(ready) + end, raw)


def say(text: str) -> None:
    """Write a line for a person to standard error."""
    write(f"{text}\n", stream=sys.stderr)


def one_line(message: object) -> str:
    """A message, usually an error, in one line; blanks and control characters in names are made visible."""
    if isinstance(message, OSError) and message.filename:
        message = f"{str(message.filename)!r}: {message.strerror}"
    line = re.sub(r"\s*\n\s*", " ", str(message))
    return "".join(character if character.isprintable() else escape(character) for character in line)


def print_json(value: Any) -> None:
    """Print JSON; an infinite number or NaN is null, because JSON has no such numbers."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------------------------------------------------------------------------------------- tables


def show(title: str, values: Mapping[str, Any]) -> None:
    """Print a table of names and values."""
    table = Table("", "", title=_plain(title, "table.title"), show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(_plain(name), _plain(str(value)))
    Console().print(table)


def show_rows(title: str, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print a table of rows.

    Args:
        title: above the table.
        rows: mappings that hold the values.
        columns: for each heading the format of its cells, such as `"{speed:,.0f}"`; `time` and `MB` are formats too.
            A cell is - where a row has no such value.
    """
    table = Table(*columns, title=_plain(title, "table.title"), title_justify="left")
    for row in rows:
        table.add_row(*(_plain(_cell(form, row)) for form in columns.values()))
    Console().print(table)


class _Formatter(string.Formatter):
    def format_field(self, value: Any, spec: str) -> Any:
        if spec == "time":
            return seconds(value)
        return f"{value / 1e6:,.0f} MB" if spec == "MB" else super().format_field(value, spec)


def _cell(form: str, row: Mapping[str, Any]) -> str:
    try:
        return _Formatter().vformat(form, (), {name: value for name, value in row.items() if value is not None})
    except KeyError:
        return "-"


def _plain(text: str, style: str = "") -> Text:
    """A cell or title as it is: without markup, and with escapes for control characters."""
    return Text(escape_controls(text), style, overflow="fold")


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3)) if value * f >= 1), ("µs", 1e6))
    return f"{value * factor:,.3g} {unit}" if value < 1000 else f"{value:,.0f} s"


def number(value: float | None, unit: str) -> str:
    """A measured number with its unit."""
    return "not measured" if value is None else f"{value:.4f} {unit}"


# ------------------------------------------------------------------------------------------------------------ and more


def bar(doing: str) -> Any:
    """A function that wraps a loop in a progress bar; the bar is drawn only in a terminal."""
    return functools.partial(tqdm, desc=doing, disable=None, leave=False)


def program() -> str:
    """This program as it can be typed here."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m charrnn"
    return shlex.quote(program.name if shutil.which(program.name) else str(program))


@contextlib.contextmanager
def notebook_libraries(what: str) -> Iterator[None]:
    """Explain a failing import in the `with` block.

    Raises:
        ImportError: a library that `what` needs is missing; says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what}: expected the libraries of the notebooks, got none ({error}); run: pip install ipywidgets "
            "matplotlib scipy"
        ) from error
