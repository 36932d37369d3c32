"""`charrnn`: thin commands over the library. Flags and their help come from the config models; errors are one line."""

import argparse
import contextlib
import difflib
import importlib.metadata
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import charrnn
from charrnn.cli import bench as cli_bench
from charrnn.cli import console
from charrnn.cli.data import data
from charrnn.cli.evaluate import eval_, score
from charrnn.cli.inspect import devices, inspect, plot
from charrnn.cli.sample import sample
from charrnn.cli.train import train
from charrnn.config import (
    RENAMED,
    TOKENS,
    config_fields,
)
from charrnn.errors import ConfigError
from charrnn.generation.sampling_params import SamplingParams

FAILURE, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a failure, 2 a misuse, 128 + N the end by signal N, such as 130 for Ctrl-C."""
    closed = console.forgiving("stdout") if sys.stdout is None else contextlib.nullcontext()
    with console.forgiving("stderr"), closed:  # messages beside the output are no reason to stop
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a character is no reason to stop
    try:
        arguments = _parse(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as in `| head`
        console.discard(sys.stdout)
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConfigError as error:
        return _fail(error, console.MISUSE)
    except OSError as error:
        return _fail(error, FAILURE)
    except UnicodeEncodeError as error:  # a path or a prompt whose bytes are not UTF-8
        return _fail(f"expected Unicode text, got {error.object!r}", FAILURE)
    except (ValueError, ImportError, FloatingPointError) as error:  # the last is a loss that became NaN
        return _fail(error, FAILURE)
    except (MemoryError, RuntimeError) as error:
        from charrnn.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("out of memory: lower --hidden-size, --num-layers, --batch-size or --seq-length", FAILURE)


def _warn(message: Warning | str, *_: Any) -> None:
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts the first speaks for all
        console.say(f"charrnn: warning: {console.one_line(message)}")


def _fail(error: object, code: int) -> int:
    console.say(f"charrnn: error: {console.one_line(error)}")
    return code


# ---------------------------------------------------------------------------------------------------------- the parser


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog="charrnn", description=charrnn.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=importlib.metadata.version("charrnn"))
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=console.Parser)

    command = console.add_command(commands, "train", train)
    command.add_argument("config", nargs="?", type=console.path, help="YAML file of settings; flags win over it")
    command.add_argument(
        "--out", type=console.path, metavar="DIR", help="the run's directory (default: a new one, by time)"
    )
    start = command.add_mutually_exclusive_group()
    start.add_argument("--resume", type=console.path, metavar="DIR", help="go on with the run in DIR")
    start.add_argument(
        "--init-from",
        type=console.path,
        metavar="DIR",
        help="start from the model and vocabulary in DIR, not those configured",
    )
    command.add_argument("--dry-run", action="store_true", help="check and show everything, train and write nothing")
    command.add_argument("--quiet", action="store_true", help="print the run's directory alone")
    console.add_settings(command, config_fields())

    command = console.add_command(commands, "sample", sample)
    _add_checkpoint(command)
    _add_device(command)
    console.add_settings(command, config_fields("generation"), default="that of the checkpoint")
    command.add_argument("--argmax", action="store_true", help="always the likeliest character: temperature 0")
    command.add_argument("--seed", type=console.whole(0), help=SamplingParams.model_fields["seed"].description)
    command.add_argument("--num", type=console.whole(1), default=1, help="number of texts (default: 1)")
    command.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16: several texts come faster where the processor has the type, and are others (default: fp32)",
    )
    command.add_argument("--output", type=console.path, metavar="FILE", help="write the text to FILE")
    command.add_argument("--interactive", action="store_true", help="ask for one prompt after another")
    command.add_argument("--quiet", action="store_true", help="print the text alone")
    command.add_argument(
        "--raw", action="store_true", help="write control characters to a terminal as they are, not as escapes"
    )

    command = console.add_command(commands, "eval", eval_)
    _add_checkpoint(command)
    _add_device(command)
    console.add_settings(command, config_fields("data"), default="that of the checkpoint", without=TOKENS)
    command.add_argument("--split", choices=("train", "val", "test", "all"), default="val", help="(default: val)")
    _add_baselines(command)
    console.add_json(command)

    command = console.add_command(commands, "score", score)
    _add_checkpoint(command)
    command.add_argument(
        "text", nargs="?", default="-", metavar="TEXT|FILE", help="the text, or a file; - or nothing: standard input"
    )
    _add_device(command)
    console.add_json(command)

    command = console.add_command(commands, "inspect", inspect)
    _add_checkpoint(command)
    console.add_json(command)

    command = console.add_command(commands, "data", data)
    command.add_argument(
        "name", nargs="?", metavar="NAME|PATH", help="a corpus, a file, a folder, a glob, or - (default: a list)"
    )
    command.add_argument(
        "--cache", nargs="?", const="show", choices=("show", "clear"), help="show the token cache, or clear it"
    )
    command.add_argument("--stats", action="store_true", help="bytes, lines, words, entropy and the commonest, too")
    _add_baselines(command)
    console.add_json(command)
    console.add_settings(command, config_fields("data"), without=("data",))

    command = console.add_command(commands, "plot", plot)
    command.add_argument(
        "runs", nargs="+", type=console.path, metavar="RUN", help="the directory of a run, finished or not"
    )
    command.add_argument(
        "--out", type=console.picture_file, metavar="FILE", help="a .png or .svg file (default: RUN/plot.png)"
    )

    console.add_json(console.add_command(commands, "devices", devices))

    cli_bench.add_commands(commands)
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    arguments, unknown = _parser().parse_known_args(words)
    flags = re.findall(r"--[a-z-]+", arguments.parser.format_help())
    _refuse_slips(words, arguments, flags)
    if unknown:
        near = difflib.get_close_matches(unknown[0], flags, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if (old := unknown[0].partition("=")[0].removeprefix("--").replace("-", "_")) in RENAMED:
            hint = f"; it is now called --{RENAMED[old].replace('_', '-')}"
        arguments.parser.error(f"unrecognized argument {unknown[0]}{hint}")
    return arguments


def _refuse_slips(words: Sequence[str], arguments: argparse.Namespace, flags: Sequence[str]) -> None:
    """A dash that an editor made of two hyphens, and a value after a switch, would be taken for a file's name."""
    given = vars(arguments)
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag = word.partition("=")[0]
        hyphens = "--" + flag.lstrip("-–—")
        if word.startswith(("–", "—")) and hyphens in flags:
            arguments.parser.error(f"argument {flag}: expected two hyphens, got a dash; write {hyphens}")
        name = hyphens.removeprefix("--").removeprefix("no-").replace("-", "_")
        setting = f"setting:{name}" in given
        switch = word in flags and isinstance(given.get(f"setting:{name}" if setting else name), bool)
        if switch and following.lower() in ("true", "false"):
            on = f"--{name.replace('_', '-')}"
            how = f"{on} or --no-{on.removeprefix('--')}" if setting else f"{on} alone"
            arguments.parser.error(f"argument {word}: expected no value, got {following!r}; write {how}")


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint", type=console.path, metavar="CHECKPOINT", help="a checkpoint, or the directory of a run"
    )


def _add_baselines(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--baselines", action="store_true", help="bits per character of n-gram models counted on the train split, too"
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N, mps or auto (default: cpu)")
