"""`charrnn sample --interactive`: each line is a prompt, or a command if it starts with a colon.

`parse_command` reads a line, a `Session` holds the settings and the last text, `interact` connects both to a terminal.
The commands are the settings of generation, and a few actions. `:temp`, `:topk` and the like are short for them.
"""

import contextlib
import difflib
import io
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from platformdirs import user_state_dir

from charrnn.atomic import write_atomically
from charrnn.cli import console
from charrnn.config import ESCAPES, GenerationConfig, RunConfig, escaped, unescaped
from charrnn.errors import ConfigError
from charrnn.generation.generator import TextGenerator
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import SEEDS, SamplingParams
from charrnn.generation.text import TextStream

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

# ------------------------------------------------------------------------------------------------------------ commands


def _usages() -> dict[str, tuple[str, str]]:
    """For each command its argument and what it does."""
    usages = {}
    for name, field in GenerationConfig.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        off = "|off" if type(None) in kinds else ""
        usages[name] = (f"TEXT{off}" if str in kinds else f"NUMBER{off}", field.description or "")
    del usages["prompt"]
    return usages | {
        "seed": ("NUMBER|random", "start of the random numbers; it goes up by one with each text"),
        "more": ("", "continue the text"),
        "save": ("FILE", "write the last text to a new file"),
        "save!": ("FILE", "write the last text to a file, which may exist"),
        "settings": ("", "show the settings"),
        "help": ("", "show the commands"),
        "quit": ("", "end, as Ctrl-D does"),
    }


USAGES = _usages()


def parse_command(line: str) -> tuple[str, str | None]:
    r"""The command in a typed line and its argument, None for `off`; of a prompt, `write` and the prompt.

    Two colons make a prompt that starts with one. Quotes around an argument keep the spaces at its ends. The escapes
    are those of `config.unescaped`: \n is a newline, \t a tab, \\ a backslash.

    Raises:
        ConfigError: an unknown command, one without its argument, or one with an argument too many.
    """
    if not line.startswith(":") or line.startswith("::"):
        return "write", unescaped(line.removeprefix(":"))
    typed, _, value = line[1:].partition(" ")
    name, value = _full_name(typed.strip().lower()), value.strip()
    argument, _ = USAGES[name]
    if bool(argument) != bool(value):
        expected, got = (f":{name} {argument}", "no value") if argument else (f":{name} alone", repr(value))
        raise ConfigError(f":{name}: expected {expected}, got {got}")
    if argument.endswith("off") and value.lower() in ("off", "none"):
        return name, None
    value = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    return name, value if argument == "FILE" else unescaped(value)


def _full_name(typed: str) -> str:
    """The command that `typed` names or begins; - and _ in a name do not matter."""
    if typed in USAGES:
        return typed
    plain = typed.replace("-", "").replace("_", "")
    found = [name for name in USAGES if plain and name.replace("_", "").startswith(plain)]
    if len(found) == 1:
        return found[0]
    near = found or [name for name in USAGES if plain and plain in name] or difflib.get_close_matches(typed, USAGES)
    hint = f"did you mean ':{near[0]}'?" if near else ":help shows all of them"
    raise ConfigError(f"unknown command ':{typed}'; {hint}")


def completions(line: str) -> list[tuple[str, str]]:
    """Words that can replace the last one of `line`, each with its meaning."""
    if not line.startswith(":") or line.startswith("::"):
        return []
    typed, space, value = line[1:].partition(" ")
    if not space:
        return [(f":{name}", about) for name, (_, about) in USAGES.items() if name.startswith(typed)]
    with contextlib.suppress(ConfigError):
        words = USAGES[_full_name(typed)][0].split("|")
        return [(word, "") for word in words if word.islower() and word.startswith(value)]
    return []


# ------------------------------------------------------------------------------------------------------------- session


class Session:
    """The settings of a session and its last text, without any terminal.

    Args:
        generator: writes the texts.
        settings: as `TextGenerator.stream` takes them; the seed is that of the first text.
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
        """The last text including its prompt, as far as it was written."""
        return self._text.getvalue()

    def write(self, prompt: str) -> Iterator[str]:
        """A new text in pieces; the seed goes up by one.

        Raises:
            UnknownCharacterError: the prompt has a character outside the vocabulary.
        """
        pieces = self._begin(self._generator.stream, prompt=prompt)
        self._text = io.StringIO()
        return pieces

    def more(self) -> Iterator[str]:
        """The continuation of the last text, in pieces; the seed goes up by one.

        Raises:
            ConfigError: there is no text.
        """
        if self._stream is None or not self.text:
            raise ConfigError(":more: expected a text to continue, got none; type a prompt first")
        return self._begin(self._stream.go_on)

    def _begin(self, start: Callable[..., TextStream], **prompt: str) -> Iterator[str]:
        settings = self._config.generation.settings() | {"seed": self.seed}
        del settings["prompt"]
        self._stream = start(**settings, **prompt)
        self.seed = (self.seed + 1) % SEEDS
        return map(self._record, self._stream)

    def _record(self, piece: str) -> str:
        self._text.write(piece)
        return piece

    def change(self, name: str, value: str | None) -> None:
        """Change a setting to a value as it is typed.

        Raises:
            ConfigError: the value is out of range; nothing has changed.
            ValueError: nothing could be written with this value; nothing has changed.
        """
        if name == "seed":
            if value != "random" and not (value or "").isdecimal():
                raise ConfigError(f":seed: expected a whole number of at least 0 or random, got {value!r}")
            seed = secrets.randbelow(SEEDS) if value == "random" else int(value or "")
            SamplingParams(seed=seed)
            self.seed = seed
        else:
            config = self._config.override({name: value})
            LogitsPipeline(self._generator.tokenizer, SamplingParams(**config.generation.settings()))
            self._config = config

    def save(self, name: str, replace: bool = False) -> Path:
        """Write the last text to a file, whole or not at all, and return its path.

        Raises:
            ConfigError: there is no text, or the file exists and `replace` is False.
            OSError: the file cannot be written.
        """
        path = Path(name).expanduser()
        if not self.text:
            raise ConfigError(":save: expected a text to save, got none; type a prompt first")
        if path.is_dir() or (path.exists() and not replace):
            raise ConfigError(f":save: expected a new file, got {name!r}, which exists; :save! replaces a file")
        write_atomically(path, f"{self.text}\n".encode())
        return path

    def settings(self) -> dict[str, str]:
        """The settings by name, as they would be typed."""
        values = self._config.generation.model_dump() | {"seed": self.seed}
        return {name: _as_typed(values[name]) for name in USAGES if name in values}


def _as_typed(value: object) -> str:
    if isinstance(value, str):
        return f'"{escaped(value)}"'
    return "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------------ terminal


def interact(generator: TextGenerator, settings: dict[str, Any], raw: bool = False) -> None:
    """Answer line by line until the input ends. Ctrl-C stops the text, or the program if the input is not a terminal.

    Args:
        generator: writes the texts.
        settings: as `TextGenerator.stream` takes them; the seed goes up by one with each text.
        raw: write control characters to a terminal as they are, not as escapes.

    Raises:
        ConfigError: standard input is closed.
        ImportError: the input is a terminal and the library prompt_toolkit is not installed.
    """
    if sys.stdin is None:
        raise ConfigError("--interactive: expected lines on standard input, but it is closed")
    session = Session(generator, settings)
    person = sys.stdin.isatty()
    read = _terminal(session).prompt if person and _can_draw() else _next_line
    if person:
        console.say("type a prompt and press Enter; :help shows the commands, Ctrl-C stops the text, Ctrl-D ends")
    going = True
    while going:
        try:
            going = answer(session, read(), raw)
        except EOFError:
            going = False
        except KeyboardInterrupt:
            if not person:
                raise


def _can_draw() -> bool:
    """Return whether a prompt can be drawn: some output is a terminal that can move its cursor."""
    capable = os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return capable and any(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


def answer(session: Session, line: str, raw: bool = False) -> bool:
    """Carry out a line and return whether to go on. An error is printed and changes nothing."""
    try:
        name, value = parse_command(line)
        if name in ("write", "more"):
            console.write_stream(session.more() if name == "more" else session.write(value or ""), raw)
        elif name in ("save", "save!"):
            console.say(f"saved: {session.save(value or '', name == 'save!')}")
        elif name == "settings":
            _list(session.settings().items())
        elif name == "help":
            _list((f":{name} {argument}", about) for name, (argument, about) in USAGES.items())
            console.say(f"anything else is a prompt; {ESCAPES}; :: at its start is a colon")
        elif name == "quit":
            return False
        else:
            session.change(name, value)
    except BrokenPipeError:  # the output was closed
        raise
    except (OSError, ValueError) as error:
        console.say(console.one_line(error))
    return True


def _list(rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.say(f"  {name:{width}}  {value}")


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")  # a file may begin with a byte-order mark


def _terminal(session: Session, **more: Any) -> "PromptSession[str]":
    """A prompt with a history, completion and a toolbar of settings; `more` goes to prompt_toolkit."""
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
        """Completes commands, their arguments and file names."""

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
        """In a low terminal make the menu smaller and hide the toolbar; otherwise prompt_toolkit hides the line."""
        rows = app.output.get_size().rows
        prompt.bottom_toolbar = toolbar if rows > 3 else None
        prompt.reserve_space_for_menu = min(8, rows // 2)

    settings = {"output": create_output(always_prefer_tty=True)} | more  # the text may go to a file
    prompt: PromptSession[str] = PromptSession("> ", history=_history(), completer=Commands(), **settings)
    prompt.app.before_render += fit
    return prompt


def _history() -> Any:
    """The lines typed in this and earlier sessions; only in this one if no file can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Lenient(FileHistory):
        """A history whose full disk does not end the session."""

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
