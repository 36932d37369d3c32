"""`charrnn train`."""

import argparse
import contextlib
import signal
from shlex import quote
from typing import TYPE_CHECKING, Any

from charrnn.cli import console
from charrnn.cli.data import about_tokens
from charrnn.cli.flags import add_settings, add_shared, given_config, given_settings, refuse_together
from charrnn.config import BUDGETS, TOKENS, TrainingConfig, config_fields, dump_config

if TYPE_CHECKING:  # PyTorch takes seconds to load, so only the commands that need it import it
    from charrnn.generation.generator import TextGenerator
    from charrnn.training.run import Run


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the flags of `charrnn train`."""
    about = "the run's directory (default: a new one, named by time)"
    command.add_argument("--out", type="path", metavar="DIR", help=about)
    start = command.add_mutually_exclusive_group()
    start.add_argument("--resume", type="path", metavar="DIR", help="continue the run in DIR")
    about = "start from the weights and vocabulary in DIR"
    start.add_argument("--init-from", type="path", metavar="DIR", help=about)
    about = "check and show everything, but train and write nothing"
    command.add_argument("--dry-run", action="store_true", help=about)
    command.add_argument("--quiet", action="store_true", help="print only the run's directory")
    add_shared(command, "config")
    add_settings(command, config_fields())


def run(arguments: argparse.Namespace) -> int:
    """Train a model or resume a run. Under torchrun, all processes train one model."""
    from charrnn.training import distributed
    from charrnn.training.run import Run, new_run_directory

    refuse_together(arguments, "resume", "config", "out")
    refuse_together(arguments, "init_from", *(name for _, _, name, _ in config_fields("model")), *TOKENS)
    with console.forgiving("stdout"), distributed.process_group():  # a run continues even if nobody reads its output
        if arguments.resume:
            run = Run.resume(arguments.resume, given_settings(arguments))
        else:
            config = given_config(arguments)
            run = Run.start(config, None if arguments.dry_run else arguments.out, arguments.init_from)
            if not arguments.dry_run and arguments.out is None and distributed.rank() == 0:
                run.directory = new_run_directory(config)
        return _train(run, arguments)


def _train(run: "Run", arguments: argparse.Namespace) -> int:
    from charrnn.training import distributed
    from charrnn.training.callbacks import ProgressBar

    if distributed.rank() > 0:  # only the first process prints
        if not arguments.dry_run:
            run.fit()
        return 0
    if arguments.dry_run:
        console.write(dump_config(run.config))
        console.show("would train", _about(run))
        return 0
    if run.trainer.done():
        run.fit()  # finishes what a crash may have interrupted at the very end
        more = "patience" if run.trainer.share_used() < 1 else "budget"
        step = run.trainer.progress.step
        console.say(f"{run.directory}: already finished at step {step:,}; raise the {more} to continue")
        return 0
    if arguments.quiet:
        return _conclude(run, run.fit(), quiet=True)
    console.show("training", _about(run))
    known = run.trainer.progress.backend or run.config.device.backend != "auto"
    bar = ProgressBar(run.trainer.share_used(), note="" if known else "finding the fastest backend")
    with contextlib.closing(bar):
        generator = run.fit(bar)
    return _conclude(run, generator, quiet=False)


def _conclude(run: "Run", generator: "TextGenerator", quiet: bool) -> int:
    step, directory = run.trainer.progress.step, str(run.directory)
    if not run.trainer.done():
        console.say(f"stopped at step {step:,}; resume with: {console.program()} train --resume {quote(directory)}")
        return 128 + (run.stopped_by or signal.SIGINT)
    if quiet:
        console.write(f"{directory}\n")
        return 0
    if run.trainer.share_used() < 1:
        console.say(f"ended early at step {step:,}: no improvement in {run.config.training.patience} evaluations")
    best = run.trainer.progress.best_loss
    if best is not None and run.directory:
        console.say(f"best validation loss {best:.4f} nats per token; {run.directory / 'best'}")
    settings = run.config.generation.model_dump() | {"length": 500, "seed": run.config.device.seed}
    console.say("a sample:")
    console.write_stream(generator.stream(**settings))
    console.say(f"generate more with: {console.program()} sample {quote(directory)}")
    return 0


def _about(run: "Run") -> dict[str, Any]:
    from charrnn.models.build import count_parameters
    from charrnn.training.distributed import world_size

    corpus, config, progress = run.corpus, run.config, run.trainer.progress
    splits = corpus.split(config.data.train_frac, config.data.val_frac)
    budgets = {name: getattr(config.training, name) for name in BUDGETS}
    precision, backend = progress.precision or config.device.precision, progress.backend or config.device.backend
    processes = f", {world_size()} processes" if world_size() > 1 else ""
    measured = ", the fastest, measured first" if "auto" in (precision, backend) else ""
    shape = f"{config.model.num_layers}x{config.model.hidden_size} {config.model.type}"
    return {
        "text": f"{corpus.name}: {corpus.characters:,} characters",
        **about_tokens(corpus),
        "splits": ", ".join(f"{name} {len(tokens):,}" for name, tokens in splits._asdict().items()),
        "model": f"{shape}, {count_parameters(run.generator.model):,} parameters",
        "step": _about_step(run),
        "budget": ", ".join(f"{name} {value:g}" for name, value in budgets.items() if value is not None),
        "recipe": _recipe(config.training),
        "device": f"{run.trainer.device}{processes}, precision {precision}, backend {backend}{measured}",
        "directory": run.directory or "none",
    }


def _about_step(run: "Run") -> str:
    from charrnn.data.streams import CharDataset

    dataset = run.trainer.dataset
    if isinstance(dataset, CharDataset):
        steps = len(dataset.borders(0))
        return f"{dataset.batch_size} streams of {dataset.seq_length}, {steps:,} steps an epoch"
    padding = f"{dataset.padding:.1%} of them padding, {dataset.steps:,} steps an epoch"
    return f"{dataset.batch_size} documents by up to {dataset.seq_length} tokens, {padding}"


def _recipe(config: TrainingConfig) -> str:
    """Optimizer, learning rate, schedule, and the other settings that are not at their defaults."""
    shown = {name: getattr(config, name) for name in ("optimizer", "learning_rate", "schedule")}
    shown |= config.model_dump(exclude_defaults=True, exclude={"batch_size", "seq_length", *BUDGETS})
    return ", ".join(f"{name} {value}" for name, value in shown.items())
