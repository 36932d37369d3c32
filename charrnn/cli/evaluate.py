"""`charrnn eval`."""

import argparse
from typing import TYPE_CHECKING

from charrnn.cli import console
from charrnn.cli.flags import add_settings, add_shared, given_settings
from charrnn.config import TOKENS, config_fields
from charrnn.generation.generator import load_model

if TYPE_CHECKING:  # PyTorch takes seconds to load, so only the commands that need it import it
    from charrnn.data.corpus import Corpus


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn eval`."""
    add_shared(command, "checkpoint", "--device", "--baselines", "--json")
    fields = (field for field in config_fields("data") if field[2] not in TOKENS)
    add_settings(command, fields, default="that of the checkpoint")
    command.add_argument("--split", choices=("train", "val", "test", "all"), default="val", help="the part to measure")


def run(arguments: argparse.Namespace) -> None:
    """Measure how well a model predicts a text."""
    from charrnn.api import evaluate
    from charrnn.data.corpus import load_corpus
    from charrnn.training.evaluation import evaluation_config

    generator = load_model(arguments.checkpoint, arguments.device)
    given = given_settings(arguments)
    config = evaluation_config(generator, given.pop("data", None), **given)
    corpus = load_corpus(config, generator.tokenizer)
    fractions = {"train_frac": config.train_frac, "val_frac": config.val_frac}
    result = evaluate(generator, corpus, arguments.split, progress=console.bar("evaluating"), **fractions)
    ladder: dict[str, float] = {}
    if arguments.baselines:
        ladder = measure_baselines(corpus, arguments.split, **fractions) | {"this model": result.bpc}
    about = {"checkpoint": str(arguments.checkpoint), "data": config.name, "split": arguments.split}
    if arguments.json:
        sizes = {"characters": result.characters, "tokens": result.tokens, "unknown": float(corpus.unknown_share)}
        measured = {"loss": result.loss, "bpc": result.bpc, "perplexity": result.perplexity}
        console.print_json(about | sizes | measured | ({"baselines": ladder} if ladder else {}))
        return
    about |= {"characters": f"{result.characters:,}", "tokens": f"{result.tokens:,}"}
    if generator.tokenizer.unknown is not None:
        about["unknown"] = f"{corpus.unknown_share:.2%} of the tokens"
    about |= {"loss": console.number(result.loss, "nats per token")}
    about |= {"bpc": console.number(result.bpc, "bits per character"), "perplexity": f"{result.perplexity:.3f}"}
    console.show("evaluation", about)
    show_baselines(ladder)


def measure_baselines(corpus: "Corpus", split: str, train_frac: float, val_frac: float) -> dict[str, float]:
    """Bits per character of n-gram models on a split, by their names."""
    from charrnn.models.ngrams import NgramModel, ngram_ladder

    splits = corpus.split(train_frac, val_frac)
    tokens = corpus.tokens if split == "all" else splits._asdict()[split]
    order = min(8, len(splits.train))
    model = NgramModel(splits.train, corpus.tokenizer.vocab_size, order, progress=console.bar("counting n-grams"))
    return ngram_ladder(model, corpus.tokenizer, tokens, corpus.predicted(split, train_frac, val_frac))


def show_baselines(ladder: dict[str, float]) -> None:
    """Print the models from worst to best, if there are any."""
    if ladder:
        rows = [{"model": name, "bpc": bpc} for name, bpc in sorted(ladder.items(), key=lambda item: -item[1])]
        console.show_rows("baselines", rows, {"model": "{model}", "bits per character": "{bpc:.4f}"})
