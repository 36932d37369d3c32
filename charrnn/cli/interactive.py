"""A talk with a model in the terminal: each line typed is a prompt, or a command if it starts with a colon.

`parse_command` reads a line, a `Session` holds what is set and what was written, `interact` brings both to a terminal.
"""

import contextlib
import difflib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from platformdirs import user_state_dir

from charrnn.atomic import write_atomically
from charrnn.cli import console
from charrnn.config import ESCAPES, GenerationConfig, RunConfig, escaped, unescaped
from charrnn.errors import ConfigError
from charrnn.generation.generator import TextGenerator, TextStream
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import SEEDS, SamplingParams

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

FLUSHES = 60  # a second, at most: each is a call of the system, and no eye sees more


# ------------------------------------------------------------------------------------------------------ what is typed


@dataclass(frozen=True)
class Command:
    """Something to do other than to write: what it takes, what it does, values to offer, the setting it changes."""

    takes: str
    does: str
    values: tuple[str, ...] = ()
    setting: str = ""


def _of_setting(name: str, *values: str) -> Command:
    field = GenerationConfig.model_fields[name]
    kinds = get_args(field.annotation) or (field.annotation,)
    off = ("off",) if type(None) in kinds else ()
    takes = "|".join(("TEXT" if str in kinds else "NUMBER", *off))
    return Command(takes, field.description, (*values, *off), name)


COMMANDS = {
    "temp": _of_setting("temperature", "0.5", "0.8", "1"),
    "topk": _of_setting("top_k", "5", "20"),
    "topp": _of_setting("top_p", "0.5", "0.9"),
    "minp": _of_setting("min_p", "0.02", "0.1"),
    "typical": _of_setting("typical_p", "0.5", "0.95"),
    "penalty": _of_setting("repetition_penalty", "1.1", "1.5"),
    "length": _of_setting("length", "200", "1000", "0"),
    "stop": _of_setting("stop", "\\n", "\\n\\n"),
    "allow": _of_setting("allow"),
    "forbid": _of_setting("forbid"),
    "seed": Command("NUMBER|random", "start of the random numbers; it goes up by one with each text", ("random",)),
    "more": Command("", "go on from the text so far"),
    "save": Command("FILE", "write the last text to a new file; :save! replaces one that is there"),
    "settings": Command("", "show what is set"),
    "help": Command("", "show the commands"),
    "quit": Command("", "end, as Ctrl-D does"),
}


@dataclass(frozen=True)
class Write:
    """Write a text that starts with this."""

    prompt: str


@dataclass(frozen=True)
class Change:
    """Give a setting, or the seed, this value; None is off."""

    setting: str
    value: str | None


@dataclass(frozen=True)
class Do:
    """Any other command, with what is typed after it."""

    command: str
    argument: str = ""


def parse_command(line: str) -> Write | Change | Do:
    r"""What a typed line means.

    A line is a prompt; two colons make a prompt that starts with one. Quotes around the value of a command keep the
    spaces at its ends. Escapes are those of `config.unescaped`: \n is a newline, \t a tab, \\ a backslash.

    Raises:
        ConfigError: an unknown command, or one without its value or with one too many.
    """
    if not line.startswith(":") or line.startswith("::"):
        return Write(unescaped(line.removeprefix(":")))
    name, _, value = line[1:].partition(" ")
    name, value = name.strip().lower(), value.strip()
    if name == "save!" and value:
        return Do(name, _unquoted(value))
    if name not in COMMANDS:
        raise ConfigError(f"unknown command ':{name}'{_nearest(name)}")
    command = COMMANDS[name]
    if bool(command.takes) != bool(value):
        expected, got = (f":{name} {command.takes}", "no value") if command.takes else (f":{name} alone", repr(value))
        raise ConfigError(f":{name}: expected {expected}, got {got}")
    if name == "save":
        return Do(name, _unquoted(value))
    if not command.takes:
        return Do(name)
    if "off" in command.values and value.lower() in ("off", "none"):
        return Change(command.setting, None)
    return Change(command.setting or name, unescaped(_unquoted(value)))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _nearest(name: str) -> str:
    by_setting = {command.setting: known for known, command in COMMANDS.items() if command.setting}
    near = difflib.get_close_matches(name.replace("-", "_"), [*COMMANDS, *by_setting], n=1)
    return f"; did you mean ':{by_setting.get(near[0], near[0])}'?" if near else "; :help shows those there are"


def completions(line: str) -> list[tuple[str, str]]:
    """What may stand in place of the last word of `line`, and what each of that means."""
    if not line.startswith(":") or line.startswith("::"):
        return []
    name, space, value = line[1:].partition(" ")
    if space:
        values = COMMANDS[name].values if name in COMMANDS else ()
        return [(each, "") for each in values if each.startswith(value)]
    return [(f":{known}", command.does) for known, command in COMMANDS.items() if known.startswith(name)]


# -------------------------------------------------------------------------------------------- what is set, and written


class Session:
    """The settings of a talk and its last text; it knows of no terminal.

    Args:
        generator: writes.
        settings: of `TextGenerator.stream`; the seed among them is that of the first text.
    """

    def __init__(self, generator: TextGenerator, settings: dict[str, Any]):
        self._generator = generator
        values = {name: settings[name] for name in GenerationConfig.model_fields if name in settings}
        self._config = RunConfig(generation=GenerationConfig(**values | {"length": settings["length"] or 0}))
        self.seed: int = settings["seed"]
        self._text = io.StringIO()
        self._stream: TextStream | None = None

    @property
    def text(self) -> str:
        """The last text, prompt and all, as far as it was written."""
        return self._text.getvalue()

    def write(self, prompt: str) -> Iterator[str]:
        """A new text in pieces; the seed goes up by one.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
        """
        return self._begin(self._generator.stream, prompt=prompt)

    def more(self) -> Iterator[str]:
        """What follows the last text, in pieces; the seed goes up by one.

        Raises:
            ConfigError: there is no text.
        """
        if self._stream is None or not self.text:
            raise ConfigError(":more: expected a text to go on from, got none; type a prompt first")
        return self._begin(self._stream.go_on)

    def _begin(self, start: Callable[..., TextStream], **prompt: str) -> Iterator[str]:
        settings = self._config.generation.settings() | {"seed": self.seed}
        del settings["prompt"]
        self._stream = start(**settings, **prompt)
        self.seed = (self.seed + 1) % SEEDS
        if prompt:
            self._text = io.StringIO()
        return map(self._noted, self._stream)

    def _noted(self, piece: str) -> str:
        self._text.write(piece)
        return piece

    def change(self, setting: str, value: str | None) -> None:
        """Set one of the settings, or the seed, as it is typed.

        Raises:
            ConfigError: the value is out of range; all stays as it was.
            ValueError: with it, nothing could be written; all stays as it was.
        """
        if setting == "seed":
            self.seed = _seed(value)
            return
        config = self._config.override({setting: value})
        LogitsPipeline(self._generator.tokenizer, SamplingParams(**config.generation.settings()))
        self._config = config

    def save(self, name: str, replace: bool = False) -> Path:
        """Write the last text to a file, whole or not at all; its path.

        Raises:
            ConfigError: there is no text, or the file is there and `replace` is False.
            OSError: it cannot be written.
        """
        path = Path(name).expanduser()
        if not self.text:
            raise ConfigError(":save: expected a text to save, got none; type a prompt first")
        if path.is_dir() or (path.exists() and not replace):
            raise ConfigError(f":save: expected a new file, got {name!r}, which is there; :save! replaces a file")
        write_atomically(path, f"{self.text}\n".encode())
        return path

    def settings(self) -> dict[str, str]:
        """What is set, by the names of the commands, as it would be typed."""
        values = self._config.generation.model_dump() | {"seed": self.seed}
        return {
            name: _as_typed(values[command.setting or name])
            for name, command in COMMANDS.items()
            if (command.setting or name) in values
        }


def _seed(value: str | None) -> int:
    if value == "random":
        return int.from_bytes(os.urandom(4), "big")
    if value is None or not value.isdecimal():
        raise ConfigError(f":seed: expected a whole number of at least 0 or random, got {value!r}")
    return SamplingParams(seed=int(value)).seed


def _as_typed(value: object) -> str:
    if isinstance(value, str):
        return f'"{escaped(value)}"'
    return "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------- the terminal


def interact(generator: TextGenerator, settings: dict[str, Any], raw: bool = False) -> int:
    """Answer line by line until the input ends. Ctrl-C stops the text, not the program; where nobody types, both.

    Args:
        generator: writes.
        settings: of `TextGenerator.stream`; the seed goes up by one with each text.
        raw: a terminal gets the control characters of a text as they are, not as escapes.

    Returns:
        0, the exit code.

    Raises:
        ConfigError: standard input is closed.
        ImportError: somebody types and the library prompt_toolkit is not installed.
    """
    if sys.stdin is None:
        raise ConfigError("--interactive: expected lines on standard input, got a closed one")
    session = Session(generator, settings)
    somebody = sys.stdin.isatty()
    read = _terminal(session).prompt if somebody and _can_draw() else _next_line
    if somebody:
        console.say("type a prompt and press Enter; :help shows the commands, Ctrl-C stops the text, Ctrl-D ends")
    while True:
        try:
            if not answer(session, read(), raw):
                return 0
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if not somebody:
                raise


def _can_draw() -> bool:
    """Whether a prompt can be drawn: some output is a terminal, and one that moves its cursor."""
    capable = os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return capable and any(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


def answer(session: Session, line: str, raw: bool = False) -> bool:
    """Do what a line says; False if it is to end. What is wrong is said, and changes nothing."""
    try:
        wanted = parse_command(line)
        if isinstance(wanted, Write):
            show(session.write(wanted.prompt), raw)
        elif isinstance(wanted, Change):
            session.change(wanted.setting, wanted.value)
        else:
            return _do(session, wanted, raw)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody reads any more
            raise
        console.say(console.one_line(error))
    except ValueError as error:
        console.say(console.one_line(error))
    return True


def _do(session: Session, wanted: Do, raw: bool) -> bool:
    if wanted.command == "more":
        show(session.more(), raw)
    elif wanted.command in ("save", "save!"):
        console.say(f"saved: {session.save(wanted.argument, wanted.command == 'save!')}")
    elif wanted.command == "settings":
        _list(session.settings().items())
    elif wanted.command == "help":
        _list((f":{name} {command.takes}", command.does) for name, command in COMMANDS.items())
        console.say(f"anything else is a prompt; {ESCAPES}; :: at its start is a colon")
    return wanted.command != "quit"


def _list(rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.say(f"  {name:{width}}  {value}")


def show(pieces: Iterable[str], raw: bool = False) -> None:
    """Write pieces as they come, those of one moment together, then end the line; whatever stops them, none is lost."""
    waiting: list[str] = []
    due = 0.0
    try:
        for piece in pieces:
            waiting.append(piece)
            if (now := time.monotonic()) >= due:
                console.write("".join(waiting), raw)
                waiting.clear()
                due = now + 1 / FLUSHES
    finally:
        console.write("".join(waiting) + "\n", raw)


def _next_line() -> str:
    """The next line of standard input."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")  # a file may begin with a byte-order mark


def _terminal(session: Session, **more: Any) -> "PromptSession[str]":
    """Where somebody types: with a history, completion and the settings below; `more` is for prompt_toolkit."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion, PathCompleter
        from prompt_toolkit.document import Document
        from prompt_toolkit.output import create_output
    except ImportError as error:
        raise ImportError(
            "--interactive: expected the library prompt_toolkit, got none; run: pip install prompt_toolkit"
        ) from error

    class Commands(Completer):
        """Offers commands, their values and files."""

        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Any]:
            line = document.text_before_cursor
            name, space, value = line.partition(" ")
            if space and name in (":save", ":save!"):
                yield from PathCompleter(expanduser=True).get_completions(Document(value), complete_event)
            for text, meaning in completions(line):
                yield Completion(text, -len(value if space else line), display_meta=meaning)

    def toolbar() -> str:
        return "  ".join(f"{name} {value}" for name, value in session.settings().items() if value != "off")

    def fit(app: Any) -> None:
        """In a low terminal show a smaller menu and no toolbar: prompt_toolkit shows no line where all do not fit."""
        rows = app.output.get_size().rows
        prompt.bottom_toolbar = toolbar if rows > 3 else None
        prompt.reserve_space_for_menu = min(8, rows // 2)

    settings = {"output": create_output(always_prefer_tty=True)} | more  # the text may go to a file
    prompt: PromptSession[str] = PromptSession("> ", history=_history(), completer=Commands(), **settings)
    prompt.app.before_render += fit
    return prompt


def _history() -> Any:
    """The lines typed so far, here and in earlier talks; where no file can be written, in this one alone."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Lenient(FileHistory):
        """A disk that is full must not end a talk."""

        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):
                super().store_string(string)

    path = Path(user_state_dir("charrnn", appauthor=False)) / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a+b").close()
    except OSError:
        return InMemoryHistory()
    return Lenient(path)
