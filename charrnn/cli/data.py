"""`charrnn data`."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charrnn.cli import console
from charrnn.cli.console import _refuse_together, _settings
from charrnn.cli.evaluate import _baselines, _show_ladder
from charrnn.cli.train import _about_tokens
from charrnn.config import (
    DataConfig,
    RunConfig,
)
from charrnn.data.corpora import catalogue, default_data_dir, open_source

if TYPE_CHECKING:  # PyTorch takes seconds to load: it is left to the commands that need it
    from charrnn.data.corpus import Corpus


def data(arguments: argparse.Namespace) -> int:
    """List the corpora, describe a text, or show and clear the token cache."""
    if arguments.cache:
        return _cache(arguments)
    if arguments.name is None:
        corpora = [{"name": name, **entry} for name, entry in catalogue().items()]
        if arguments.json:
            console.print_json(corpora)
        else:
            rows = [{key: entry[key] for key in ("name", "description", "license")} for entry in corpora]
            console.show_rows("corpora", rows)
        return 0
    from charrnn.data.corpus import load_corpus
    from charrnn.data.streams import find_ends

    config = RunConfig().override(_settings(arguments) | {"data": arguments.name}).data
    corpus = load_corpus(config)
    splits = corpus.split(config.train_frac, config.val_frac)
    sizes = {name: len(tokens) for name, tokens in splits._asdict().items()}
    statistics = _statistics(config, corpus) if arguments.stats else {}
    ladder = _baselines(corpus, "val", config.train_frac, config.val_frac) if arguments.baselines else {}
    if arguments.json:
        tokenizer = corpus.tokenizer
        values = {"name": corpus.name, "characters": corpus.characters, "tokens": len(corpus.tokens)}
        values |= {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "unknown": corpus.unknown_share}
        values |= {"splits": sizes, "sha256": corpus.sha256}
        if corpus.end is not None:
            values["documents"] = len(find_ends(corpus.tokens, corpus.end)) - 1
        statistics |= values  # of documents they count the separators as characters, too
        console.print_json(statistics | ({"baselines": ladder} if ladder else {}))
        return 0
    rows = {
        "characters": f"{corpus.characters:,}",
        **_about_tokens(corpus),
        **{f"{name} split": f"{size:,} tokens" for name, size in sizes.items()},
        "sha256": corpus.sha256,
    }
    console.show(corpus.name, rows | (_about_statistics(corpus, statistics) if statistics else {}))
    if ladder:
        _show_ladder(ladder)
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    """Show the token cache, or clear it."""
    from charrnn.data.corpus import cached_texts, clear_cache

    _refuse_together(arguments, "cache", "name")
    if arguments.cache == "clear":
        console.say(f"{default_data_dir() / '.cache'}: removed {clear_cache():,} bytes")
        return 0
    texts = cached_texts()
    if arguments.json:
        console.print_json([text._asdict() for text in texts])
        return 0
    rows = [
        {
            "text": text.text or "(a vocabulary)",
            "tokens": f"{text.tokenizer}, {text.vocab_size:,} different" if text.text else "",
            "bytes": f"{text.bytes:,}",
            "files": Path(text.files).name,
        }
        for text in texts
    ]
    console.say(f"{default_data_dir() / '.cache'}: {sum(text.bytes for text in texts):,} bytes")
    if rows:
        console.show_rows("token cache", rows)
    return 0


def _statistics(config: DataConfig, corpus: "Corpus") -> dict[str, Any]:
    """Bytes, lines and words of a text; its entropy in bits per character, each token taken alone; common tokens."""
    from charrnn.data.statistics import commonest, describe_text, entropy

    text = open_source(config.model_copy(update={"documents": False}))
    shape, extent = describe_text(text.pieces("measuring")), corpus.extent()
    return {
        **shape._asdict(),
        "entropy": extent.bpc(entropy(corpus.tokens)),
        "uniform": extent.bpc(math.log2(corpus.tokenizer.vocab_size)),
        "common": [{"token": text, "count": count} for text, count in commonest(corpus.tokens, corpus.tokenizer)],
    }


def _about_statistics(corpus: "Corpus", values: dict[str, Any]) -> dict[str, str]:
    count, size, dtype = len(corpus.tokens), corpus.tokens.nbytes, corpus.tokens.dtype
    lines, characters = values["lines"], values["characters"]
    rows = {
        "bytes in UTF-8": f"{values['bytes']:,}, {values['bytes'] / characters:.3f} a character",
        "lines": f"{lines:,}, {characters / lines:.1f} characters each, the longest {values['longest_line']:,}",
        "words": f"{values['words']:,}, between spaces",
        "token array": f"{size:,} bytes, {dtype} each, {corpus.characters / count:.3f} characters a token",
        "entropy": f"{values['entropy']:.4f} bits per character, each token taken alone",
        "uniform": f"{values['uniform']:.4f} bits per character",
    }
    for rank, token in enumerate(values["common"], 1):
        rows[f"common {rank}"] = f"{token['token']!r}  {token['count']:,}  ({token['count'] / count:.1%})"
    return rows
