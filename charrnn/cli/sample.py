"""`charrnn sample`."""

import argparse
import functools
import io
import secrets
import sys
import threading
from typing import Any

from charrnn.atomic import write_atomically
from charrnn.cli import console
from charrnn.cli.console import _refuse_together, _settings
from charrnn.errors import ConfigError, UnknownCharacterError
from charrnn.generation.generator import TextGenerator, load_model
from charrnn.generation.sampling_params import SamplingParams


def sample(arguments: argparse.Namespace) -> int:
    """Generate text."""
    _refuse_together(arguments, "interactive", "output", "prompt")
    if arguments.output and not arguments.output.parent.is_dir():
        raise ConfigError(f"--output: expected a file in a folder that exists, got {str(arguments.output)!r}")
    generator = load_model(arguments.checkpoint, arguments.device)
    overrides = _settings(arguments) | ({"temperature": 0} if arguments.argmax else {})
    settings = generator.config.override(overrides).generation.settings()
    settings["seed"] = secrets.randbits(31) if arguments.seed is None else arguments.seed
    SamplingParams(**settings)
    if not arguments.quiet:
        console.say(f"{arguments.checkpoint}: " + ", ".join(f"{k} {v!r}" for k, v in settings.items() if v is not None))
    exact = not arguments.interactive and _keep_bytes(generator, arguments.raw or bool(arguments.output))
    try:
        if arguments.interactive:
            return _interact(generator, settings, arguments.raw)
        if arguments.num == 1 and not arguments.output:
            if arguments.precision != "fp32":
                raise ConfigError(
                    "--precision: expected bf16 only with --num or --output, got it for a text that streams"
                )
            _stream(generator, settings, arguments.quiet, arguments.raw, end="" if exact else "\n")
            return 0
        if settings["length"] is None:
            raise ConfigError("--length: expected at least 1 with --num or --output, which wait for the end; got 0")
        prompt = settings.pop("prompt")
        progress = functools.partial(console.count_blocks, "writing", settings["length"])
        texts = generator.generate_batch(
            [prompt] * arguments.num, **settings, precision=arguments.precision, progress=progress
        )
    except UnknownCharacterError as error:
        raise ConfigError(f"--prompt: {error}") from error
    pieces = texts if exact and arguments.num == 1 else [f"{text}\n" for text in texts]
    if arguments.num > 1 and not arguments.quiet:
        pieces = [f"----- seed {settings['seed'] + i} -----\n{piece}" for i, piece in enumerate(pieces)]
    if arguments.output:
        write_atomically(arguments.output, "\n".join(pieces).encode("utf-8", "surrogateescape"))
    else:
        console.write("\n".join(pieces), arguments.raw)
    return 0


def _keep_bytes(generator: TextGenerator, to_file_or_raw: bool) -> bool:
    """Write what a byte model writes byte by byte, UTF-8 or not, to a file or a pipe; a terminal gets U+FFFD."""
    if generator.tokenizer.kind != "byte" or not (to_file_or_raw or not sys.stdout.isatty()):
        return False
    generator.tokenizer.errors = "surrogateescape"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    return True


def _stream(
    generator: TextGenerator, settings: dict[str, Any], quiet: bool = False, raw: bool = False, end: str = "\n"
) -> None:
    """Write text as it comes: nothing in it is markup, and a terminal obeys nothing in it unless it is `raw`."""
    pieces = generator.stream(**settings)
    patience = "still getting ready; the first text on a machine waits some seconds for what is compiled once"
    waiting = threading.Timer(2.0, lambda: None if quiet else console.say(patience))
    waiting.daemon = True
    waiting.start()
    try:
        for number, piece in enumerate(pieces):
            if number or not settings["prompt"]:  # the prompt is there at once
                waiting.cancel()
            console.write(piece, raw)
    finally:
        waiting.cancel()
        sys.stdout.write(end)


def _interact(generator: TextGenerator, settings: dict[str, Any], raw: bool) -> int:
    """Each line typed is a prompt, or a command."""
    from charrnn.cli.interactive import interact

    return interact(generator, settings, raw)
