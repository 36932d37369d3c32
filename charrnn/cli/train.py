"""`charrnn train`."""

import argparse
import signal
from shlex import quote
from typing import TYPE_CHECKING, Any

from charrnn.cli import console
from charrnn.cli.console import _refuse_together, _settings
from charrnn.cli.sample import _stream
from charrnn.config import (
    BUDGETS,
    TOKENS,
    RunConfig,
    TrainingConfig,
    config_fields,
    dump_config,
    load_config,
)
from charrnn.generation.generator import TextGenerator

if TYPE_CHECKING:  # PyTorch takes seconds to load: it is left to the commands that need it
    from charrnn.data.corpus import Corpus
    from charrnn.training.run import Run


def train(arguments: argparse.Namespace) -> int:
    """Train a model, or go on training one; started by torchrun, with all of its processes together."""
    from charrnn.training import distributed
    from charrnn.training.run import Run, new_run_directory

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
    from charrnn.training import distributed
    from charrnn.training.callbacks import ProgressBar

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
    from charrnn.models.build import count_parameters

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
    from charrnn.training import distributed

    return f", {distributed.world_size()} processes" if distributed.world_size() > 1 else ""


def _recipe(config: TrainingConfig) -> str:
    """How it is trained, in a line: what is at its default is left out but for the first two."""
    words = [f"{config.optimizer} {config.learning_rate:g}", f"schedule {config.schedule}"]
    if config.optimizer == "muon":
        words[0] += f", its matrices {config.muon_learning_rate:g}"
    for name in ("ema_decay", "label_smoothing", "micro_batches", "patience"):
        if getattr(config, name) != TrainingConfig.model_fields[name].default:
            words.append(f"{name} {getattr(config, name):g}")
    return ", ".join(words)


def _about_tokens(corpus: "Corpus") -> dict[str, str]:
    from charrnn.data.streams import find_ends

    kind, different = corpus.tokenizer.kind, f"{corpus.tokenizer.vocab_size:,} different"
    rows = {"tokens": f"{len(corpus.tokens):,} of kind {kind}, {different}"}
    if corpus.end is not None:
        rows["documents"] = f"{len(find_ends(corpus.tokens, corpus.end)) - 1:,}"
    if corpus.tokenizer.unknown is not None:
        extent = corpus.extent()
        spelled = f"to spell them takes {extent.spelling / extent.characters:.3f} bits per character"
        rows["unknown"] = f"{corpus.unknown_share:.2%} of the tokens stand for something rarer; {spelled}"
    return rows
