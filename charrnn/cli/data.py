"""`charrnn data`."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn.cli import console
from charrnn.cli.evaluate import measure_baselines, show_baselines
from charrnn.cli.flags import add_settings, add_shared, given_settings, refuse_together
from charrnn.config import DataConfig, RunConfig, config_fields
from charrnn.data.corpora import catalogue, default_data_dir, open_source

if TYPE_CHECKING:  # PyTorch takes seconds to load, so only the commands that need it import it
    from charrnn.data.corpus import Corpus

CORPORA = {"name": "{name}", "description": "{description}", "license": "{license}"}
CACHE = {"text": "{text}", "tokens": "{tokenizer}, {vocab_size:,} different", "bytes": "{bytes:,}", "files": "{files}"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn data`."""
    about = "a corpus, a file, a folder, a glob, or -; without it the corpora are listed"
    command.add_argument("name", nargs="?", metavar="NAME|PATH", help=about)
    about = "show the token cache, or clear it"
    command.add_argument("--cache", nargs="?", const="show", choices=("show", "clear"), help=about)
    about = "add bytes, lines, words, entropy and the most frequent tokens"
    command.add_argument("--stats", action="store_true", help=about)
    add_shared(command, "--baselines", "--json")
    add_settings(command, (field for field in config_fields("data") if field[2] != "data"))


def run(arguments: argparse.Namespace) -> None:
    """List the corpora, describe a text, or show and clear the token cache."""
    if arguments.cache:
        _run_cache(arguments)
    elif arguments.name is None:
        corpora = [{"name": name, **entry} for name, entry in catalogue().items()]
        if arguments.json:
            console.print_json(corpora)
        else:
            console.show_rows("corpora", corpora, CORPORA)
    else:
        _describe(arguments)


def _run_cache(arguments: argparse.Namespace) -> None:
    from charrnn.data.corpus import cached_texts, clear_cache

    refuse_together(arguments, "cache", "name")
    folder = default_data_dir() / ".cache"
    if arguments.cache == "clear":
        console.say(f"{folder}: removed {clear_cache():,} bytes")
        return
    texts = [text._asdict() for text in cached_texts()]
    if arguments.json:
        console.print_json(texts)
        return
    console.say(f"{folder}: {sum(text['bytes'] for text in texts):,} bytes")
    if texts:
        rows = [text | {"text": text["text"] or "(a vocabulary)", "files": Path(text["files"]).name} for text in texts]
        console.show_rows("token cache", rows, CACHE)


def _describe(arguments: argparse.Namespace) -> None:
    from charrnn.data.corpus import load_corpus

    config = RunConfig().override(given_settings(arguments) | {"data": arguments.name}).data
    corpus = load_corpus(config)
    splits = corpus.split(config.train_frac, config.val_frac)
    sizes = {name: len(tokens) for name, tokens in splits._asdict().items()}
    statistics = _statistics(config, corpus) if arguments.stats else {}
    ladder = measure_baselines(corpus, "val", config.train_frac, config.val_frac) if arguments.baselines else {}
    if arguments.json:
        values = {"name": corpus.name, "characters": corpus.characters, "tokens": len(corpus.tokens)}
        values |= {"tokenizer": corpus.tokenizer.kind, "vocab_size": corpus.tokenizer.vocab_size}
        values |= {"unknown": corpus.unknown_share, "splits": sizes, "sha256": corpus.sha256}
        if corpus.end is not None:
            values["documents"] = _count_documents(corpus)
        # the statistics of documents count the separators as characters, so the corpus's own number wins
        console.print_json(statistics | values | ({"baselines": ladder} if ladder else {}))
        return
    rows = {"characters": f"{corpus.characters:,}", **about_tokens(corpus)}
    rows |= {f"{name} split": f"{size:,} tokens" for name, size in sizes.items()} | {"sha256": corpus.sha256}
    common = ", ".join(f"{token['token']!r} {token['count']:,}" for token in statistics.pop("common", ()))
    for name, value in statistics.items():
        rows[name.replace("_", " ")] = f"{value:,}" if isinstance(value, int) else f"{value:.4f} bits per character"
    console.show(corpus.name, rows | ({"most common": common} if common else {}))
    show_baselines(ladder)


def about_tokens(corpus: "Corpus") -> dict[str, str]:
    """Rows of a table: tokens, documents and unknown tokens of a text."""
    tokenizer = corpus.tokenizer
    rows = {"tokens": f"{len(corpus.tokens):,} of kind {tokenizer.kind}, {tokenizer.vocab_size:,} different"}
    if corpus.end is not None:
        rows["documents"] = f"{_count_documents(corpus):,}"
    if tokenizer.unknown is not None:
        extent = corpus.extent()
        spelled = f"to spell them takes {extent.spelling / extent.characters:.3f} bits per character"
        rows["unknown"] = f"{corpus.unknown_share:.2%} of the tokens stand for something rarer; {spelled}"
    return rows


def _count_documents(corpus: "Corpus") -> int:
    from charrnn.data.streams import find_ends

    assert corpus.end is not None
    return len(find_ends(corpus.tokens, corpus.end)) - 1


def _statistics(config: DataConfig, corpus: "Corpus") -> dict[str, Any]:
    """Bytes, lines and words of a text; the entropy of single tokens in bits per character; common tokens."""
    from charrnn.data.statistics import describe_text, entropy, most_common

    text = open_source(config.model_copy(update={"documents": False}))
    shape, extent = describe_text(text.pieces("measuring")), corpus.extent()
    return {
        **shape._asdict(),
        "entropy": extent.bpc(entropy(corpus.tokens)),
        "uniform": extent.bpc(math.log2(corpus.tokenizer.vocab_size)),
        "common": [{"token": text, "count": count} for text, count in most_common(corpus.tokens, corpus.tokenizer)],
    }
