"""What commands and a person tell each other: flags one way; lines, tables and progress bars the other."""

import argparse
import contextlib
import functools
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, get_args

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from charrnn.config import (
    WITH_ESCAPES,
    config_fields,
    unescaped,
)
from charrnn.data.characters import escape_controls, visible
from charrnn.errors import ConfigError

MISUSE = 2  # the exit code

Setting = tuple[str, str, str, Any]  # section, key, name on the command line, field, as `config.config_fields` has them


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end the program."""
        message = message.replace("ignored explicit argument", "expected no value, got")
        dash = r"\g<0>; if it starts with a dash: \1=-…"
        message = re.sub(r"^argument (--\S+): expected one argument$", dash, message)
        print(f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(MISUSE)


def add_command(commands: Any, name: str, run: Any) -> Parser:
    """A command that calls `run` with its arguments; its help is the docstring of `run`."""
    command = commands.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
    command.set_defaults(run=run, parser=command)
    return command


def add_json(command: argparse.ArgumentParser) -> None:
    """The flag that asks for JSON instead of tables."""
    command.add_argument("--json", action="store_true", help="print JSON")


def add_settings(
    command: argparse.ArgumentParser,
    fields: Iterable[Setting],
    default: str = "",
    without: tuple[str, ...] = (),
) -> None:
    """A flag for every one of `fields`; those not given stay out of the namespace."""
    for _section, key, name, field in fields:
        if name in without:
            continue
        value = "none" if field.default is None else field.default
        value = repr(value) if value in ("", "\n") else value
        switch = {"action": argparse.BooleanOptionalAction} if field.annotation is bool else {"metavar": key.upper()}
        command.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"setting:{name}",
            default=argparse.SUPPRESS,
            help=f"{field.description} (default: {default or value})".replace("%", "%%"),
            **switch,
        )


def given_settings(arguments: argparse.Namespace, fields: Iterable[Setting]) -> dict[str, Any]:
    """The values of the flags of `add_settings` that were given."""
    given = {
        key.removeprefix("setting:"): value for key, value in vars(arguments).items() if key.startswith("setting:")
    }
    given |= {name: unescaped(given[name]) for name in WITH_ESCAPES if name in given}
    optional = {name for _, _, name, field in fields if type(None) in get_args(field.annotation)}
    empty = ("none", "null")
    return {name: None if name in optional and value.lower() in empty else value for name, value in given.items()}


def whole(least: int) -> Any:
    """A reader of whole numbers of at least `least`."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def positive(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def path(text: str) -> Path:
    """Read a path. An empty one, most likely a shell variable that is not set, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def new_file(text: str) -> Path:
    """Read the path of a file to write, which is better refused before the work than after it."""
    file = path(text)
    if file.is_dir() or not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text!r}")
    return file


def picture_file(text: str) -> Path:
    """Read the path of a PNG or SVG file to write."""
    file = new_file(text)
    if file.suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a file that ends in .png or .svg, got {text!r}")
    return file


# ---------------------------------------------------------------------------------------------------- what is shown


class _Forgiving:
    """A standard stream that goes quiet for good when it can no longer be written to."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or discard the text."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or discard it."""
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
    """Inside the `with` block a failing `sys.stdout` or `sys.stderr` goes quiet instead of raising an OSError.

    It may be closed, the reader of its pipe may have left, its terminal may be gone or its disk full.
    """
    before = getattr(sys, name)
    with contextlib.ExitStack() as stack:
        if before is None or before.closed:  # the null device also takes its number, before another file does
            stream: Any = stack.enter_context(open(os.devnull, "w"))
        else:
            stream = _Forgiving(before)
        setattr(sys, name, stream)
        try:
            yield
        finally:
            setattr(sys, name, before)


def write(text: str, raw: bool = False, stream: TextIO | None = None) -> None:
    """Write to a stream, standard output by default, at once; a terminal gets controls as escapes, unless `raw`."""
    stream = stream or sys.stdout
    stream.write(escape_controls(text) if stream.isatty() and not raw else text)
    stream.flush()


def say(text: str) -> None:
    """A line for a person, beside the output proper."""
    write(f"{text}\n", stream=sys.stderr)


def one_line(message: object) -> str:
    """A message, most often an error, in one line; of the names in it, all blanks and control characters are shown."""
    if isinstance(message, OSError) and message.filename:
        message = f"{str(message.filename)!r}: {message.strerror}"
    line = re.sub(r"\s*\n\s*", " ", str(message))
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)


def print_json(value: Any) -> None:
    """Print JSON; a number that is infinite or NaN is null, since JSON has no such numbers."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(title: str, values: dict[str, Any]) -> None:
    """A table of names and values."""
    table = Table("", "", title=_plain(title, "table.title"), show_header=False, title_justify="left")
    for name, value in values.items():
        table.add_row(_plain(name), _plain(str(value)))
    Console().print(table)


def show_rows(title: str, rows: Sequence[dict[str, str]]) -> None:
    """A table of rows with the same keys."""
    table = Table(*rows[0], title=_plain(title, "table.title"), title_justify="left")
    for row in rows:
        table.add_row(*map(_plain, row.values()))
    Console().print(table)


def _plain(text: str, style: str = "") -> Text:
    """A text for a table: nothing in it is markup, and a terminal obeys nothing in it."""
    return Text(escape_controls(text), style, overflow="fold")


def show_heat(cells: Iterable[tuple[str, str, float]]) -> None:
    """Texts with a number below each and, below that, a heat, as many in a row as fit; a newline ends the row.

    Args:
        cells: text, number and heat; where colours can be shown, a heat from 0 to 8 goes from white to orange.
    """
    console = Console()
    rows = [Text(), Text(), Text()]
    for text, number, heat in cells:
        shown = visible(text)
        width = max(cell_len(shown), 4)
        if rows[0] and rows[0].cell_len + width + 1 > console.width:
            console.print(*rows, "", sep="\n", no_wrap=True, crop=False)
            rows = [Text(), Text(), Text()]
        cold = 1 - min(heat / 8, 1)  # orange is Okabe and Ito's: black on it has a contrast of 9
        style = f"black on #{230 + round(25 * cold):02x}{159 + round(96 * cold):02x}{round(255 * cold):02x}"
        for row, part in zip(rows, (shown, number, f"{heat:.1f}"), strict=True):
            row.append(part + " " * (width - cell_len(part)), style).append(" ")
        if text.endswith("\n"):
            console.print(*rows, "", sep="\n", no_wrap=True, crop=False)
            rows = [Text(), Text(), Text()]
    if rows[0]:
        console.print(*rows, sep="\n", no_wrap=True, crop=False)


def bar(doing: str) -> Any:
    """What wraps a loop in a progress bar, where a person watches."""
    return functools.partial(tqdm, desc=doing, disable=None, leave=False)


def count_blocks(doing: str, total: int, blocks: Iterable[Any]) -> Iterator[Any]:
    """The same blocks, with a progress bar that counts what is in them, where a person watches."""
    with tqdm(desc=doing, total=total, disable=None, leave=False) as progress:
        for block in blocks:
            yield block
            progress.update(len(block))


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3)) if value * f >= 1), ("µs", 1e6))
    return f"{value * factor:,.3g} {unit}" if value < 1000 else f"{value:,.0f} s"


def program() -> str:
    """This program as it can be typed here."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return "python -m charrnn"
    return shlex.quote(program.name if shutil.which(program.name) else str(program))


@contextlib.contextmanager
def libraries_of_the_notebooks(what: str) -> Iterator[None]:
    """Where one of them cannot be imported in the `with` block, say what to install.

    Raises:
        ImportError: that says so, and that `what` needs it.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what}: expected the libraries of the notebooks, got none ({error}); run: pip install ipywidgets "
            "matplotlib scipy"
        ) from error


def _refuse_together(arguments: argparse.Namespace, name: str, *others: str) -> None:
    """What would be ignored is refused."""
    if getattr(arguments, name):
        given = vars(arguments)
        both = next((other for other in others if given.get(other) or f"setting:{other}" in given), None)
        if both:
            flag = both.upper() if both in ("config", "name") else f"--{both.replace('_', '-')}"
            raise ConfigError(f"{flag}: expected to be left out with --{name.replace('_', '-')}, which settles it")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return given_settings(arguments, config_fields())
