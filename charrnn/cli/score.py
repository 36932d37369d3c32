"""`charrnn score`."""

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from charrnn.cli import console
from charrnn.cli.flags import add_shared
from charrnn.config import DataConfig
from charrnn.data.characters import visible
from charrnn.data.corpora import absolute_name, open_source
from charrnn.errors import ConfigError
from charrnn.generation.generator import load_model

WORST = {
    "at": "{at:,}",
    "token": "{token!r}",
    "after": "{after!r}",
    "probability": "{probability:.2g}",
    "bits": "{bits:.1f}",
    "likeliest was": "{likeliest}",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn score`."""
    add_shared(command, "checkpoint", "--device", "--json")
    about = "a text, or a file; - is standard input"
    command.add_argument("text", nargs="?", default="-", metavar="TEXT|FILE", help=about)


def run(arguments: argparse.Namespace) -> None:
    """Show how surprising each character of a text is to a model."""
    from charrnn.generation.scoring import score

    generator = load_model(arguments.checkpoint, arguments.device)
    text = _text_to_score(arguments.text, "byte" if generator.tokenizer.kind == "byte" else "char")
    found = score(generator, text, progress=console.bar("reading"))
    probabilities, bits = found.probability.tolist(), found.surprisal.tolist()
    total = sum(bits) + found.spelling
    if arguments.json:
        named = zip(found.tokens, probabilities, bits, strict=True)
        scores = [{"token": token, "probability": p, "surprisal": b} for token, p, b in named]
        sizes = {"characters": found.characters, "tokens": len(bits), "bits": total, "bpc": found.bpc}
        console.print_json({"checkpoint": str(arguments.checkpoint), **sizes, "scores": scores})
        return
    console.say("each token, its probability, and its surprisal in bits:")
    show_heat(zip(found.tokens, (f"{p:.2f}" if p >= 0.005 else "<.01" for p in probabilities), bits, strict=True))
    worst = [
        {
            "at": place + 1,
            "token": found.tokens[place],
            "after": "".join(found.tokens[max(0, place - 20) : place]),
            "probability": probabilities[place],
            "bits": bits[place],
            "likeliest": repr(found.likeliest[place]) if found.likeliest[place] else "the end",
        }
        for place in found.worst(10)
    ]
    console.show_rows("most surprising", worst, WORST)
    rows = {"checkpoint": arguments.checkpoint, "characters": f"{found.characters:,}", "tokens": f"{len(bits):,}"}
    console.show("score", rows | {"bits": f"{total:,.1f}", "bpc": f"{found.bpc:.3f} bits per character"})


def _text_to_score(given: str, kind: str) -> str:
    """The text itself, or the content of a file or of standard input, read for this kind of token."""
    if given == "-" or os.path.isfile(given):  # False, not an error, for a text too long to be a name
        if given == "-" and sys.stdin and sys.stdin.isatty():
            console.say("type a text; an end of file (Ctrl-D, on Windows Ctrl-Z and Enter) ends it")
        name = given if given == "-" else absolute_name(Path(given))
        config = DataConfig.model_validate({"name": name, "tokenizer": kind})
        return "".join(open_source(config).pieces("reading"))
    if re.fullmatch(r"\S+\.[a-z]{1,4}", given):
        raise ConfigError(f"TEXT: expected a text, an existing file or -, got {given!r}; no such file")
    return given


def show_heat(cells: Iterable[tuple[str, str, float]]) -> None:
    """Print texts, each above its number and its heat, as many side by side as fit; a newline ends the row.

    Args:
        cells: text, number and heat. In a terminal with colours, heat from 0 to 8 goes from white to orange.
    """
    terminal = Console()
    rows = [Text(), Text(), Text()]

    def end_row() -> None:
        if rows[0]:
            terminal.print(*rows, "", sep="\n", no_wrap=True, crop=False)
            rows[:] = [Text(), Text(), Text()]

    for text, number, heat in cells:
        shown = visible(text)
        width = max(cell_len(shown), 4)
        if rows[0].cell_len + width + 1 > terminal.width:
            end_row()
        cold = 1 - min(heat / 8, 1)  # orange is that of Okabe and Ito: black on it has a contrast of 9
        style = f"black on #{230 + round(25 * cold):02x}{159 + round(96 * cold):02x}{round(255 * cold):02x}"
        for row, part in zip(rows, (shown, number, f"{heat:.1f}"), strict=True):
            row.append(part + " " * (width - cell_len(part)), style).append(" ")
        if text.endswith("\n"):
            end_row()
    end_row()
