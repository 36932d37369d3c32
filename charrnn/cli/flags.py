"""The flags of a command: those of settings come from the config models, the rest have types with names."""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic.fields import FieldInfo

from charrnn.cli.console import one_line
from charrnn.config import WITH_ESCAPES, RunConfig, config_fields, load_config, unescaped
from charrnn.errors import ConfigError

MISUSE = 2  # the exit code

Setting = tuple[str, str, str, FieldInfo]  # section, key, name on the command line, field: as from `config_fields`


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose help shows defaults; `type` may be a name from `TYPES`."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False, formatter_class=_Help)
        for read in TYPES:
            self.register("type", read.__name__, read)

    def flags(self) -> dict[str, argparse.Action]:
        """All flags by name."""
        return self._option_string_actions

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit."""
        message = message.replace("ignored explicit argument", "expected no value, got")
        dash = r"\g<0>; if it starts with a dash: \1=-…"
        message = re.sub(r"^argument (--\S+): expected one argument$", dash, message)
        print(f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(MISUSE)


class _Help(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default in (None, False, argparse.SUPPRESS) or "(default" in (action.help or "")
        return action.help if hidden else f"{action.help} (default: %(default)s)"


# --------------------------------------------------------------------------------------------------------------- types


def whole(text: str, least: int = 0) -> int:
    """Read a whole number of at least `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    return whole(text, 1)


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
    """Read a path. An empty one, most likely from an unset shell variable, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def new_file(text: str) -> Path:
    """Read the path of a file to write. It is checked before the work, not after it."""
    file = path(text)
    if file.is_dir() or not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a path in an existing folder, got {text!r}")
    return file


def figure_file(text: str) -> Path:
    """Read the path of a PNG or SVG file to write."""
    file = new_file(text)
    if file.suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a file that ends in .png or .svg, got {text!r}")
    return file


TYPES = (whole, count, positive, path, new_file, figure_file)

# ------------------------------------------------------------------------------------------- arguments of many commands

SHARED: dict[str, dict[str, Any]] = {
    "checkpoint": {"type": "path", "metavar": "CHECKPOINT", "help": "a checkpoint, or the directory of a run"},
    "config": {"type": "path", "nargs": "?", "help": "YAML file of settings; flags override it"},
    "--baselines": {"action": "store_true", "help": "add bits per character of n-gram models of the train split"},
    "--device": {"default": "cpu", "help": "cpu, cuda, cuda:N, mps or auto"},
    "--json": {"action": "store_true", "help": "print JSON"},
}


def add_shared(command: argparse.ArgumentParser, *names: str) -> None:
    """Add arguments that several commands have, by their names in `SHARED`."""
    for name in names:
        command.add_argument(name, **SHARED[name])


def add_settings(command: argparse.ArgumentParser, fields: Iterable[Setting], default: str = "") -> None:
    """Add a flag for each of `fields`. Flags that are not given stay out of the namespace."""
    for _, key, name, field in fields:
        value = "none" if field.default is None else field.default
        value = repr(value) if value in ("", "\n") else value
        switch = field.annotation is bool
        command.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"setting:{name}",
            default=argparse.SUPPRESS,
            help=f"{field.description} (default: {default or value})".replace("null:", "none:").replace("%", "%%"),
            **({"action": argparse.BooleanOptionalAction} if switch else {"metavar": key.upper()}),
        )


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Values of the flags of `add_settings` that were given, by the names of the settings."""
    optional = {name for _, _, name, field in config_fields() if type(None) in get_args(field.annotation)}
    given = {}
    for key, value in vars(arguments).items():
        if key.startswith("setting:"):
            name = key.removeprefix("setting:")
            if name in optional and value.lower() in ("none", "null"):
                value = None
            given[name] = unescaped(value) if value and name in WITH_ESCAPES else value
    return given


def given_config(arguments: argparse.Namespace) -> RunConfig:
    """The configuration in the YAML file, if there is one, changed by the flags of `add_settings`."""
    file = getattr(arguments, "config", None)
    return (load_config(file) if file else RunConfig()).override(given_settings(arguments))


def refuse_together(arguments: argparse.Namespace, name: str, *others: str) -> None:
    """Refuse arguments that `name` would make meaningless.

    Raises:
        ConfigError: `name` and one of the others are given.
    """
    given = vars(arguments)
    both = next((other for other in others if given.get(other) or f"setting:{other}" in given), None)
    if given[name] and both:
        flag = both.upper() if both in ("config", "name") else f"--{both.replace('_', '-')}"
        raise ConfigError(f"{flag}: expected to be left out with --{name.replace('_', '-')}, which settles it")
