"""`charrnn`: thin commands over the library. Flags and their help come from the config models; errors are one line."""

import argparse
import contextlib
import difflib
import functools
import importlib.metadata
import io
import itertools
import math
import os
import re
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import charrnn
from charrnn import cli_bench, console
from charrnn.atomic import write_atomically
from charrnn.config import (
    BUDGETS,
    TOKENS,
    ConfigError,
    DataConfig,
    RunConfig,
    TrainingConfig,
    config_fields,
    dump_config,
    load_config,
)
from charrnn.loading import load_model
from charrnn.sampling import TextGenerator
from charrnn.sampling_params import SamplingParams
from charrnn.sources import absolute_name, catalogue, default_data_dir, open_source
from charrnn.tokenizer import UnknownCharacterError

if TYPE_CHECKING:  # PyTorch takes seconds to load: it is left to the commands that need it
    from charrnn.api import Run
    from charrnn.corpus import Corpus

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


# ----------------------------------------------------------------------------------------------------------- commands


def train(arguments: argparse.Namespace) -> int:
    """Train a model, or go on training one; started by torchrun, with all of its processes together."""
    from charrnn import distributed
    from charrnn.api import Run, new_run_directory

    overrides = _settings(arguments)
    _refuse_together(arguments, "resume", "config", "out")
    _refuse_together(arguments, "init_from", *(name for _, _, name, _ in config_fields("model")), *TOKENS)
    with console.forgiving("stdout"), distributed.process_group():  # a run goes on although nobody reads its output
        if arguments.resume:
            run = Run.resume(arguments.resume, overrides)
        else:
            config = load_config(arguments.config) if arguments.config else RunConfig()
            config = config.override(overrides)
            run = Run.start(config, None if arguments.dry_run else arguments.out, arguments.init_from)
            if not arguments.dry_run and arguments.out is None and distributed.rank() == 0:
                run.directory = new_run_directory(config)
        return _train(run, arguments)


def _train(run: "Run", arguments: argparse.Namespace) -> int:
    from charrnn import distributed
    from charrnn.monitors import ProgressBar

    if distributed.rank() > 0:  # the first speaks for all
        if not arguments.dry_run:
            run.fit()
        return 0
    if arguments.dry_run:
        console.write(dump_config(run.config))
        console.show("would train", _about(run))
        return 0
    if run.trainer.done():
        run.fit()  # what a crash may have left undone at the very end
        more = "patience" if run.trainer.share_used() < 1 else "budget"
        console.say(
            f"{run.directory}: already finished, at step {run.trainer.progress.step:,}; a larger {more} goes on with it"
        )
        return 0
    if not arguments.quiet:
        console.show("training", _about(run))
    known = run.trainer.progress.backend or run.config.device.backend != "auto"
    note = "" if known else "finding the fastest backend"
    bar = None if arguments.quiet else ProgressBar(run.trainer.share_used(), note=note)
    try:
        generator = run.fit(*[bar] if bar else [])
    except BaseException:
        if bar:
            bar.close()
        raise
    return _conclude(run, generator, arguments.quiet)


def _refuse_together(arguments: argparse.Namespace, name: str, *others: str) -> None:
    """What would be ignored is refused."""
    if getattr(arguments, name):
        given = vars(arguments)
        both = next((other for other in others if given.get(other) or f"setting:{other}" in given), None)
        if both:
            flag = both.upper() if both in ("config", "name") else f"--{both.replace('_', '-')}"
            raise ConfigError(f"{flag}: expected to be left out with --{name.replace('_', '-')}, which settles it")


def _conclude(run: "Run", generator: TextGenerator, quiet: bool) -> int:
    step = run.trainer.progress.step
    if not run.trainer.done():
        console.say(
            f"stopped at step {step:,}; go on with: {console.program()} train --resume {quote(str(run.directory))}"
        )
        return 128 + (run.stopped_by or signal.SIGINT)
    if quiet:
        console.write(f"{run.directory}\n")
        return 0
    if run.trainer.share_used() < 1:
        console.say(f"ended early at step {step:,}: no better loss in {run.config.training.patience} evaluations")
    best = run.trainer.progress.best_loss
    if best is not None:
        console.say(f"best validation loss {best:.4f} nats per token; {run.directory / 'best'}")
    settings = run.config.generation.model_dump() | {"length": 500, "seed": run.config.device.seed}
    console.say("a sample:")
    _stream(generator, settings)
    console.say(f"more of it: {console.program()} sample {quote(str(run.directory))}")
    return 0


def _about(run: "Run") -> dict[str, Any]:
    from charrnn.models import count_parameters

    corpus, config = run.corpus, run.config
    splits = corpus.split(config.data.train_frac, config.data.val_frac)
    budgets = {name: getattr(config.training, name) for name in BUDGETS}
    progress = run.trainer.progress
    chosen = [getattr(progress, name) or getattr(config.device, name) for name in ("precision", "backend")]
    how = "precision {}, backend {}".format(*chosen) + (", the fastest, measured first" if "auto" in chosen else "")
    return {
        "text": f"{corpus.name}: {corpus.characters:,} characters",
        **_about_tokens(corpus),
        "splits": ", ".join(f"{name} {len(tokens):,}" for name, tokens in splits._asdict().items()),
        "model": f"{config.model.num_layers}x{config.model.hidden_size} {config.model.type}, "
        f"{count_parameters(run.generator.model):,} parameters",
        "step": _about_step(run),
        "budget": ", ".join(f"{name} {value:g}" for name, value in budgets.items() if value is not None),
        "recipe": _recipe(config.training),
        "device": f"{run.trainer.device}{_ranks()}, {how}",
        "directory": run.directory or "none",
    }


def _about_step(run: "Run") -> str:
    dataset = run.trainer.dataset
    if run.corpus.end is None:
        return f"{dataset.batch_size} streams of {dataset.seq_length}, {len(dataset.borders(0)):,} steps an epoch"
    return (
        f"{dataset.batch_size} documents by up to {dataset.seq_length} tokens, {dataset.padding:.1%} of them padding, "
        f"{dataset.steps:,} steps an epoch"
    )


def _ranks() -> str:
    from charrnn import distributed

    return f", {distributed.world_size()} processes" if distributed.world_size() > 1 else ""


def _recipe(config: TrainingConfig) -> str:
    """How it is trained, in a line: what is at its default is left out but for the first two."""
    words = [f"{config.optimizer} {config.learning_rate:g}", f"schedule {config.schedule}"]
    if config.optimizer == "muon":
        words[0] += f", its matrices {config.muon_learning_rate:g}"
    for name in ("ema_decay", "label_smoothing", "accumulation", "patience"):
        if getattr(config, name) != TrainingConfig.model_fields[name].default:
            words.append(f"{name} {getattr(config, name):g}")
    return ", ".join(words)


def _about_tokens(corpus: "Corpus") -> dict[str, str]:
    from charrnn.corpus import find_ends

    kind, different = corpus.tokenizer.kind, f"{corpus.tokenizer.vocab_size:,} different"
    rows = {"tokens": f"{len(corpus.tokens):,} of kind {kind}, {different}"}
    if corpus.end is not None:
        rows["documents"] = f"{len(find_ends(corpus.tokens, corpus.end)) - 1:,}"
    if corpus.tokenizer.unknown is not None:
        extent = corpus.extent()
        spelled = f"to spell them takes {extent.spelling / extent.characters:.3f} bits per character"
        rows["unknown"] = f"{corpus.unknown_share:.2%} of the tokens stand for something rarer; {spelled}"
    return rows


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
    from charrnn.repl import interact

    return interact(generator, settings, raw)


def eval_(arguments: argparse.Namespace) -> int:
    """Measure how well a model predicts a text."""
    from charrnn.api import evaluate, evaluation_config
    from charrnn.corpus import load_corpus

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
        from charrnn.lab.ngrams import NgramModel, ngram_ladder

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
    from charrnn.scoring import score

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


def inspect(arguments: argparse.Namespace) -> int:
    """Show what a checkpoint is and how it was trained."""
    info = charrnn.get_model_info(arguments.checkpoint)
    if arguments.json:
        console.print_json(info)
        return 0
    training = info["training"]
    progress = training.get("progress", {})
    rows = {
        "checkpoint": info["path"],
        "size": f"{info['bytes']:,} bytes",
        **info["model"],
        "vocabulary": f"{info['vocab_size']} tokens",
        "parameters": f"{info['num_parameters']:,}",
        **{name: " x ".join(map(str, shape)) for name, shape in info["parameters"].items()},
        "trained on": training.get("corpus", "unknown"),
        "steps": f"{training.get('step', 0):,}",
        "epochs": f"{training.get('epoch', 0):.2f}",
        "seconds": f"{progress.get('seconds', 0):.0f}",
        "precision": progress.get("precision", "unknown"),
        "backend": progress.get("backend", "unknown"),
        "validation loss": _number(training.get("val_loss"), "nats per token"),
        "validation bpc": _number(training.get("val_bpc"), "bits per character"),
    }
    console.show("checkpoint", rows)
    history = progress.get("history", [])
    if history:
        shown = history[: -1 : max(1, len(history) // 10)] + history[-1:]
        names = ("step", "epoch", "validation loss")
        cells = ((f"{step:,}", f"{epoch:.2f}", f"{loss:.4f}") for step, epoch, loss in shown)
        console.show_rows("training history", [dict(zip(names, row, strict=True)) for row in cells])
    return 0


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.4f} {unit}"


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
    from charrnn.corpus import find_ends, load_corpus

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
    from charrnn.corpus import cached_texts, clear_cache

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
    from charrnn.corpus import commonest, describe_text, entropy

    text = open_source(config.model_copy(update={"documents": False}))
    shape, extent = describe_text(text.pieces("measuring")), corpus.extent()
    return {
        **shape._asdict(),
        "entropy": extent.bpc(entropy(corpus.tokens)),
        "uniform": extent.bpc(math.log2(corpus.tokenizer.vocab_size)),
        "common": [{"token": text, "count": count} for text, count in commonest(corpus)],
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


def plot(arguments: argparse.Namespace) -> int:
    """Draw what a run has told, or compare several runs."""
    with console.libraries_of_the_notebooks("plot"):
        from charrnn.lab.runs import load_runs, run_picture, runs_picture, write_picture

    several = len(arguments.runs) > 1
    if several and not arguments.out:
        raise ConfigError("--out: expected a file for the figure of several runs, got none")
    runs = load_runs(arguments.runs)
    picture = runs_picture(runs) if several else run_picture(*runs.values(), title=next(iter(runs)))
    out = arguments.out or arguments.runs[0] / "plot.png"
    write_picture(picture, out)
    console.say(picture.alt)
    console.write(f"{out}\n")
    return 0


def devices(arguments: argparse.Namespace) -> int:
    """Show where models can run here."""
    from charrnn import installed
    from charrnn.device import describe_devices, select_device
    from charrnn.models import compiled_lstm

    chosen = select_device()
    rows = describe_devices()
    for row in rows:
        row["device auto"] = "chosen" if row["device"].split(":")[0] == chosen.type and row is rows[0] else ""
        row["numba"] = "-" if row["device"] != "cpu" else "works" if compiled_lstm() else installed.why_no_numba()
    if arguments.json:
        console.print_json(rows)
        return 0
    console.show_rows("devices", rows)
    return 0


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
        arguments.parser.error(f"unrecognized argument {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))
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


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return console.given_settings(arguments, config_fields())
