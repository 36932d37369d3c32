"""The command `charrnn`: thin commands over the library. Flags come from the config models; errors are one line."""

import argparse
import contextlib
import difflib
import importlib.metadata
import io
import itertools
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from charrnn.cli import bench, console, data, devices, evaluate, inspect, plot, sample, score, train
from charrnn.cli.flags import MISUSE, Parser
from charrnn.config import RENAMED
from charrnn.errors import ConfigError

FAILURE, INTERRUPTED = 1, 130

COMMANDS = {
    "train": train,
    "sample": sample,
    "eval": evaluate,
    "score": score,
    "inspect": inspect,
    "data": data,
    "plot": plot,
    "devices": devices,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 success, 1 failure, 2 misuse, 128 + N end by signal N, such as 130 for Ctrl-C."""
    closed = console.forgiving("stdout") if sys.stdout is None else contextlib.nullcontext()
    with console.forgiving("stderr"), closed:  # failing messages beside the output do not stop a command
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console may lack a character
    try:
        arguments = _parse(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = arguments.run(arguments) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        console.discard(sys.stdout)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except UnicodeEncodeError as error:  # a path or a prompt whose bytes are not UTF-8
        return _fail(f"expected Unicode text, got {error.object!r}")
    except (OSError, ValueError, ImportError, FloatingPointError) as error:  # the last is a loss that became NaN
        return _fail(error, MISUSE if isinstance(error, ConfigError) else FAILURE)
    except (MemoryError, RuntimeError) as error:
        from charrnn.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory: lower --hidden-size, --num-layers, --batch-size or --seq-length")


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, only the first warns
        console.say(f"charrnn: warning: {console.one_line(message)}")


def _fail(error: object, code: int = FAILURE) -> int:
    console.say(f"charrnn: error: {console.one_line(error)}")
    return code


# ---------------------------------------------------------------------------------------------------------- the parser


def _parser() -> Parser:
    about = "Train, sample and examine character-level recurrent language models."
    parser = Parser(prog="charrnn", description=about)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("charrnn"))
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.run.__doc__, description=module.run.__doc__)
        command.set_defaults(run=module.run, parser=command)
        module.add_arguments(command)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    arguments, unknown = _parser().parse_known_args(words)
    _refuse_slips(words, arguments.parser)
    if unknown:
        near = difflib.get_close_matches(unknown[0], arguments.parser.flags(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if (old := unknown[0].partition("=")[0].removeprefix("--").replace("-", "_")) in RENAMED:
            hint = f"; it is now called --{RENAMED[old].replace('_', '-')}"
        arguments.parser.error(f"unrecognized argument {unknown[0]}{hint}")
    return arguments


def _refuse_slips(words: Sequence[str], parser: Parser) -> None:
    """Refuse a typographic dash for two hyphens, and a value after a switch: both would pass for a file name."""
    flags = parser.flags()
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag = word.partition("=")[0]
        hyphens = "--" + flag.lstrip("-–—")
        if word.startswith(("–", "—")) and hyphens in flags:
            parser.error(f"argument {flag}: expected two hyphens, got a dash; write {hyphens}")
        if word in flags and flags[word].nargs == 0 and following.lower() in ("true", "false"):
            how = " or ".join(flags[word].option_strings)
            parser.error(f"argument {word}: expected no value, got {following!r}; write {how} alone")
