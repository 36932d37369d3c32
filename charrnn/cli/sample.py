"""`charrnn sample`."""

import argparse
import io
import secrets
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from charrnn.atomic import write_atomically
from charrnn.cli import console
from charrnn.cli.flags import add_settings, add_shared, given_settings, refuse_together
from charrnn.config import RunConfig, config_fields
from charrnn.data.tokenizer import ByteTokenizer, DocumentTokenizer
from charrnn.errors import ConfigError, UnknownCharacterError
from charrnn.generation.generator import TextGenerator, load_model
from charrnn.generation.sampling_params import SamplingParams
from charrnn.types import Tokens


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn sample`."""
    add_shared(command, "checkpoint", "--device")
    add_settings(command, config_fields("generation"), default="that of the checkpoint")
    command.add_argument("--argmax", action="store_true", help="always the likeliest token: temperature 0")
    command.add_argument("--seed", type="whole", help=SamplingParams.model_fields["seed"].description)
    command.add_argument("--num", type="count", default=1, help="number of texts")
    about = "bf16 is faster for several texts on processors that support it; the texts differ from fp32"
    command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=about)
    command.add_argument("--output", type="path", metavar="FILE", help="write the text to FILE")
    command.add_argument("--interactive", action="store_true", help="ask for one prompt after another")
    command.add_argument("--quiet", action="store_true", help="print only the text")
    command.add_argument("--raw", action="store_true", help="write control characters to a terminal unescaped")


def run(arguments: argparse.Namespace) -> None:
    """Generate text."""
    refuse_together(arguments, "interactive", "output", "prompt")
    if arguments.output and not arguments.output.parent.is_dir():
        raise ConfigError(f"--output: expected a path in an existing folder, got {str(arguments.output)!r}")
    generator = load_model(arguments.checkpoint, arguments.device)
    overrides = given_settings(arguments) | ({"temperature": 0} if arguments.argmax else {})
    settings = (generator.config or RunConfig()).override(overrides).generation.settings()
    settings["seed"] = secrets.randbits(31) if arguments.seed is None else arguments.seed
    SamplingParams(**settings)
    if not arguments.quiet:
        console.say(f"{arguments.checkpoint}: " + ", ".join(f"{k} {v!r}" for k, v in settings.items() if v is not None))
    if arguments.interactive:
        from charrnn.cli.interactive import interact

        interact(generator, settings, arguments.raw)
        return
    end = "" if _keep_bytes(generator, arguments.raw or bool(arguments.output)) else "\n"
    try:
        if arguments.num > 1 or arguments.output:
            _write_whole(generator, settings, arguments, end)
        elif arguments.precision != "fp32":
            raise ConfigError("--precision: expected bf16 only with --num or --output, got it for a text that streams")
        else:
            console.write_stream(generator.stream(**settings), arguments.raw, end, arguments.quiet)
    except UnknownCharacterError as error:
        raise ConfigError(f"--prompt: {error}") from error


def _write_whole(generator: TextGenerator, settings: dict[str, Any], arguments: argparse.Namespace, end: str) -> None:
    """Write texts that are generated side by side, when all are complete."""
    if settings["length"] is None:
        raise ConfigError("--length: expected at least 1 with --num or --output, which wait for the end; got 0")
    prompts = [settings.pop("prompt")] * arguments.num
    progress = partial(_progress, settings["length"])
    texts = generator.generate_batch(prompts, **settings, precision=arguments.precision, progress=progress)
    if arguments.num > 1:
        heads = [f"----- seed {settings['seed'] + i} -----\n" for i in range(arguments.num)]
        text = "\n".join(f"{'' if arguments.quiet else head}{text}\n" for head, text in zip(heads, texts, strict=True))
    else:
        text = texts[0] + end
    if arguments.output:
        write_atomically(arguments.output, text.encode("utf-8", "surrogateescape"))
    else:
        console.write(text, arguments.raw)


def _progress(length: int, blocks: Iterable[Tokens]) -> Iterator[Tokens]:
    """The same blocks of tokens `(N, B)`, with a progress bar over N."""
    with console.bar("writing")(total=length) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


def _keep_bytes(generator: TextGenerator, to_file_or_raw: bool) -> bool:
    """Make a byte model write its bytes as they are, UTF-8 or not, to a file or pipe; a terminal gets U+FFFD."""
    tokenizer = generator.tokenizer
    if not isinstance(tokenizer, ByteTokenizer | DocumentTokenizer) or tokenizer.kind != "byte":
        return False
    if sys.stdout.isatty() and not to_file_or_raw:
        return False
    tokenizer.errors = "surrogateescape"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    return True
