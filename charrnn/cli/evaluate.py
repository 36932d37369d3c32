"""`charrnn eval` and `charrnn score`."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from charrnn.cli import console
from charrnn.cli.console import _settings
from charrnn.config import (
    DataConfig,
)
from charrnn.data.corpora import absolute_name, open_source
from charrnn.errors import ConfigError
from charrnn.generation.generator import load_model

if TYPE_CHECKING:  # PyTorch takes seconds to load: it is left to the commands that need it
    from charrnn.data.corpus import Corpus


def eval_(arguments: argparse.Namespace) -> int:
    """Measure how well a model predicts a text."""
    from charrnn.api import evaluate
    from charrnn.data.corpus import load_corpus
    from charrnn.training.evaluation import evaluation_config

    generator = load_model(arguments.checkpoint, arguments.device)
    given = _settings(arguments)
    config = evaluation_config(generator, given.pop("data", None), **given)
    corpus = load_corpus(config, generator.tokenizer)
    fractions = {"train_frac": config.train_frac, "val_frac": config.val_frac}
    result = evaluate(generator, corpus, arguments.split, progress=console.bar("evaluating"), **fractions)
    values = {
        "checkpoint": str(arguments.checkpoint),
        "data": config.name,
        "split": arguments.split,
        "characters": result.characters,
        "tokens": result.tokens,
        "unknown": float(corpus.unknown_share),
        "loss": result.loss,
        "bpc": result.bpc,
        "perplexity": result.perplexity,
    }
    if arguments.baselines:
        ladder = _baselines(corpus, arguments.split, config.train_frac, config.val_frac)
        values["baselines"] = ladder | {"this model": result.bpc}
    if arguments.json:
        console.print_json(values)
        return 0
    ladder = values.pop("baselines", None)
    values |= {"loss": f"{result.loss:.4f} nats per token", "bpc": f"{result.bpc:.4f} bits per character"}
    values |= {"perplexity": f"{result.perplexity:.3f}", "unknown": f"{corpus.unknown_share:.2%} of the tokens"}
    values |= {name: f"{values[name]:,}" for name in ("characters", "tokens")}
    if generator.tokenizer.unknown is None:
        del values["unknown"]
    console.show("evaluation", values)
    if ladder:
        _show_ladder(ladder)
    return 0


def _baselines(corpus: "Corpus", split: str, train_frac: float, val_frac: float) -> dict[str, float]:
    """Bits per character of n-gram models on the split that a network is measured on."""
    with console.libraries_of_the_notebooks("--baselines"):
        from charrnn.models.ngrams import NgramModel, ngram_ladder

    splits = corpus.split(train_frac, val_frac)
    tokens = corpus.tokens if split == "all" else splits._asdict()[split]
    order = min(8, len(splits.train))
    model = NgramModel(splits.train, corpus.tokenizer.vocab_size, order, progress=console.bar("counting n-grams"))
    return ngram_ladder(model, corpus.tokenizer, tokens, corpus.predicted(split, train_frac, val_frac))


def _show_ladder(ladder: dict[str, float]) -> None:
    """The models from worst to best."""
    rows = [{"model": name, "bits per character": f"{bpc:.4f}"} for name, bpc in ladder.items()]
    console.show_rows("baselines", sorted(rows, key=lambda row: -float(row["bits per character"])))


def score(arguments: argparse.Namespace) -> int:
    """Show how surprising each character of a text is to a model."""
    from charrnn.generation.scoring import score

    generator = load_model(arguments.checkpoint, arguments.device)
    text = _text_to_score(arguments.text, "byte" if generator.tokenizer.kind == "byte" else "char")
    found = score(generator, text, progress=console.bar("reading"))
    probabilities, bits = found.probability.tolist(), found.surprisal.tolist()
    values = {
        "checkpoint": str(arguments.checkpoint),
        "characters": found.characters,
        "tokens": len(bits),
        "bits": sum(bits) + found.spelling,
        "bpc": found.bpc,
    }
    if arguments.json:
        named = zip(found.tokens, probabilities, bits, strict=True)
        scores = [{"token": token, "probability": p, "surprisal": b} for token, p, b in named]
        console.print_json(values | {"scores": scores})
        return 0
    console.say("each token, its probability, and its surprisal in bits:")
    shown = [f"{p:.2f}" if p >= 0.005 else "<.01" for p in probabilities]
    console.show_heat(zip(found.tokens, shown, bits, strict=True))
    worst = [
        {
            "at": f"{place + 1:,}",
            "token": repr(found.tokens[place]),
            "after": repr("".join(found.tokens[max(0, place - 20) : place])),
            "probability": f"{probabilities[place]:.2g}",
            "bits": f"{bits[place]:.1f}",
            "likeliest was": repr(found.likeliest[place]) if found.likeliest[place] else "the end",
        }
        for place in found.worst(10)
    ]
    console.show_rows("most surprising", worst)
    values |= {"bits": f"{values['bits']:,.1f}", "bpc": f"{found.bpc:.3f} bits per character"}
    console.show("score", values | {name: f"{values[name]:,}" for name in ("characters", "tokens")})
    return 0


def _text_to_score(given: str, kind: str) -> str:
    """The text itself, or what a file or standard input holds; `kind` of token says how it is read."""
    if given == "-" or os.path.isfile(given):  # False, not an error, for a text too long to be a name
        if given == "-" and sys.stdin and sys.stdin.isatty():
            console.say("type a text; an end of file (Ctrl-D, on Windows Ctrl-Z and Enter) ends it")
        name = given if given == "-" else absolute_name(Path(given))
        return "".join(open_source(DataConfig(name=name, tokenizer=kind)).pieces("reading"))
    if re.fullmatch(r"\S+\.[a-z]{1,4}", given):
        raise ConfigError(f"TEXT: expected a text, an existing file or -, got {given!r}; no such file")
    return given


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.4f} {unit}"
