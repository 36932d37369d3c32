"""A run: a model, its data, its trainer, and the directory they are saved to."""

import contextlib
import errno
import itertools
import math
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any, Self

from filelock import FileLock, Timeout

from charrnn.checkpoint import Checkpoint, holds_run, load_checkpoint, save_checkpoint
from charrnn.config import TOKENS, DataConfig, ModelConfig, RunConfig
from charrnn.data.corpora import absolute_name, resolve_names
from charrnn.data.corpus import Corpus, load_corpus, make_tokenizer, open_sources, tokenize
from charrnn.data.files import share_pipe
from charrnn.data.tokenizer import CharTokenizer, DocumentTokenizer, Tokenizer
from charrnn.errors import CheckpointError, ConfigError, CorpusError, UnknownCharacterError
from charrnn.generation.generator import TextGenerator, load_model
from charrnn.generation.pipeline import LogitsPipeline
from charrnn.generation.sampling_params import SamplingParams
from charrnn.models.build import build_model, with_vocabulary
from charrnn.training import distributed
from charrnn.training.callbacks import CheckpointSaver, MetricsFile, TensorBoardWriter
from charrnn.training.events import Callback
from charrnn.training.trainer import Trainer


@dataclass
class Run:
    """A training run: its text, its model, its trainer, and the directory it is written to.

    Attributes:
        directory: None if nothing is written, as on every rank except 0.
        stopped_by: the number of the signal that stopped the run, if one did.
    """

    config: RunConfig
    corpus: Corpus
    generator: TextGenerator
    trainer: Trainer
    directory: Path | None
    stopped_by: int | None = None

    @classmethod
    def start(cls, config: RunConfig, out: str | Path | None = None, init_from: str | Path | None = None) -> Self:
        """Start a new run.

        Args:
            config: all of its settings.
            out: its directory; None writes nothing.
            init_from: a checkpoint to take the weights and the vocabulary from, in place of those that `config`
                describes. Unknown characters of the text are added to its vocabulary.

        Raises:
            CheckpointError: `out` already holds a run, or `init_from` is not a checkpoint.
            CorpusError: the text cannot be read or is too short.

        Warns:
            UserWarning: the vocabulary of `init_from` has grown.
        """
        directory = Path(out) if out is not None else None
        if directory is not None and distributed.rank() == 0:
            _refuse_taken(directory)
        source = load_checkpoint(init_from) if init_from is not None else None
        config = config.model_copy(update={"data": resolve_names(config.data)})
        if source:
            kept = {name: getattr(source.config.data, name) for name in TOKENS} | {"tokenizer": source.tokenizer.kind}
            config = config.model_copy(update={"data": config.data.model_copy(update=kept)})
        share_pipe(config.data.name, distributed.broadcast_each)
        corpus = _corpus_for(source.tokenizer, config.data) if source else load_corpus(config.data)
        _check_prompt(config, corpus.tokenizer)
        size = corpus.tokenizer.vocab_size
        model = with_vocabulary(source.model, size) if source else build_model(config.model, size, config.device.seed)
        config = config.model_copy(update={"model": model.config})
        return cls._assemble(config, corpus, TextGenerator(model, corpus.tokenizer, config), directory)

    @classmethod
    def resume(cls, path: str | Path, overrides: dict[str, Any] | None = None) -> Self:
        """Continue the run at `path` at the very next batch.

        Args:
            path: the run's directory.
            overrides: settings to change, named as on the command line; the architecture and the text must stay.

        Raises:
            CheckpointError: there is nothing to resume, or it does not fit the overrides or the text.
        """
        checkpoint = load_checkpoint(path, resume=True)
        directory = _run_directory(checkpoint.path)
        config = _resumed_config(checkpoint, overrides or {})
        tensors = checkpoint.tensors or {}
        share_pipe(config.data.name, distributed.broadcast_each)
        corpus = _same_corpus(config.data, checkpoint)
        _check_prompt(config, checkpoint.tokenizer)
        generator = TextGenerator(checkpoint.model, checkpoint.tokenizer, config, checkpoint.training_state)
        run = cls._assemble(config, corpus, generator, directory)
        streams = next((len(value) for name, value in tensors.items() if name.startswith("state.")), None)
        if streams not in (None, run.trainer.dataset.batch_size):
            raise CheckpointError(
                f"{path}: expected to continue with its {streams} streams, got {run.trainer.dataset.batch_size}, "
                "because the text is too short for more; leave seq_length as it was"
            )
        try:
            run.trainer.load_state_dict(checkpoint.training_state["progress"], tensors)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: expected a whole training_state.json and optimizer.safetensors, got damaged ones "
                f"({error})"
            ) from error
        losses = [run.trainer.progress.best_loss]
        if holds_run(directory / "best"):  # it may be newer than the last checkpoint if the run was killed
            losses.append(load_checkpoint(directory / "best").training_state.get("val_loss"))
        finite = (loss for loss in losses if loss is not None and math.isfinite(loss))
        run.trainer.progress.best_loss = min(finite, default=None)
        return run

    @classmethod
    def _assemble(cls, config: RunConfig, corpus: Corpus, generator: TextGenerator, directory: Path | None) -> Self:
        if len(set(distributed.all_gather((corpus.sha256, corpus.tokenizer.to_json())))) > 1:
            raise CorpusError(
                f"{corpus.name}: expected the same text and vocabulary in all {distributed.world_size()} processes, "
                "got different ones; copy the file to every machine"
            )
        fractions = config.data.train_frac, config.data.val_frac
        train, val, _ = corpus.split(*fractions)
        extent = corpus.predicted("val", *fractions)
        settings = config.training, config.device, config.logging.log_interval
        try:
            trainer = Trainer(
                generator.model, train, val, *settings, lambda loss: extent.bpc(loss / math.log(2)), corpus.end
            )
        except CorpusError as error:
            raise CorpusError(f"{corpus.name} ({len(corpus.tokens):,} tokens): {error}") from error
        if len(val) < 2:
            _check_evaluations_not_needed(config, corpus, len(val))
        return cls(config, corpus, generator, trainer, directory if distributed.rank() == 0 else None)

    def fit(self, *callbacks: Callback) -> TextGenerator:
        """Train to the end of the budget, or until Ctrl-C, SIGTERM or SIGHUP, which save first.

        Returns:
            The best model if one was saved, else the last.

        Raises:
            CheckpointError: another process writes to the directory, or has written to it since this run was loaded.
        """
        with self._locked(), _stop_on_signals(self):
            self.trainer.fit(*self._callbacks(), *callbacks)
        generator = self._result()
        if distributed.world_size() > 1:  # the best model is in the directory of rank 0
            weights = {name: weight.cpu() for name, weight in generator.model.state_dict().items()}
            generator.model.load_state_dict(distributed.broadcast(weights))
        return generator

    def _result(self) -> TextGenerator:
        if self.directory is not None and (self.directory / "best").exists():
            return load_model(self.directory / "best", str(self.trainer.device))
        progress = self.trainer.progress
        measured = progress.history and progress.evaluated_at == progress.step
        self.generator.training_state = self._training_state(progress.history[-1][-1] if measured else None)
        self.generator.model = self.trainer.evaluated_model
        return self.generator

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the run's directory, so that no two processes write to it, and check that it has not changed."""
        if self.directory is None:
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise CheckpointError(
                f"{self.directory}: another process is training in this directory; wait for it, or choose another"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # file systems without locks are used without
                raise
        try:
            self._refuse_changed(self.directory)
            yield
        finally:
            lock.release()

    def _refuse_changed(self, directory: Path) -> None:
        """Raise CheckpointError if another process has trained the run since it was loaded."""
        progress, last = self.trainer.progress, directory / "last"
        if progress.saved_at < 0:
            _refuse_taken(directory)
        elif last.exists() and (step := load_checkpoint(last).training_state.get("step", 0)) > progress.step:
            raise CheckpointError(
                f"{directory}: expected a run at step {progress.step:,}, as it was loaded, got one that another "
                f"process has trained to step {step:,}; resume it again"
            )

    def _callbacks(self) -> list[Callback]:
        """The callbacks that write to the run's directory."""
        if self.directory is None:
            return []
        logging, step = self.config.logging, self.trainer.progress.step
        saver = CheckpointSaver(self.directory, self._save, logging.save_top_k, self.config.model.type)
        callbacks: list[Callback] = [saver, MetricsFile(self.directory / "metrics.jsonl", step)]
        if logging.tensorboard:
            generator = TextGenerator(self.trainer.evaluated_model, self.generator.tokenizer, self.config)
            callbacks.append(TensorBoardWriter(Path(logging.log_dir) / self.directory.name, generator, step))
        return callbacks

    def _save(self, path: Path, resumable: bool, val_loss: float | None) -> None:
        tensors = self.trainer.state_dict() if resumable else None
        model, tokenizer = self.trainer.evaluated_model, self.generator.tokenizer
        save_checkpoint(path, model, tokenizer, self.config, self._training_state(val_loss), tensors)

    def _training_state(self, val_loss: float | None) -> dict[str, Any]:
        """The contents of training_state.json; `val_loss` is that of the current weights, None if not measured."""
        trainer = self.trainer
        return {
            "corpus": self.config.data.name,
            "corpus_sha256": self.corpus.sha256,
            "val_sha256": _val_hash(self.corpus),
            "step": trainer.progress.step,
            "epoch": trainer.epoch,
            "val_loss": val_loss,
            "val_bpc": None if val_loss is None or trainer.to_bpc is None else trainer.to_bpc(val_loss),
            "progress": asdict(trainer.progress),
        }


def new_run_directory(config: RunConfig) -> Path:
    """Create a directory named after corpus, model and time in the configured folder.

    No other run gets the same one, even if it starts in the same second.

    Raises:
        ConfigError: the configured folder cannot be written to.
    """
    stem = "stdin" if config.data.name == "-" else Path(absolute_name(config.data.name)).stem
    stem = re.sub(r"[^\w.]+", "-", stem).encode()[:100].decode(errors="ignore")  # a name has at most 255 bytes
    name = f"{stem.strip('-.') or 'text'}-{config.model.type}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.logging.checkpoint_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
            path = folder / f"{name}{suffix}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                break
    except OSError as error:
        raise ConfigError(
            "logging.checkpoint_dir (--checkpoint-dir): expected a folder that can be written to, got "
            f"{folder.resolve()}; choose another, or name the run's own with --out"
        ) from error
    return path


def _refuse_taken(directory: Path) -> None:
    """Raise CheckpointError if a new run cannot be written to `directory`."""
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a directory for the run, got a file; choose another with --out")
    if holds_run(directory) or any((directory / name).exists() for name in ("best", "last", "metrics.jsonl")):
        raise CheckpointError(
            f"{directory}: expected a new directory, got one that holds a run; continue it with --resume "
            f"{quote(str(directory))}, or choose another with --out"
        )


def _corpus_for(tokenizer: Tokenizer, config: DataConfig) -> Corpus:
    """The text in the tokens of a trained model, with unknown characters added to the end of its vocabulary.

    If the model has a token for rare characters, only characters that are not rare in this text are added. The end
    token is added if the text consists of documents.
    """
    if config.documents and tokenizer.end is None:
        tokenizer = DocumentTokenizer(tokenizer)
    known, sources = _char_tokenizer(tokenizer), open_sources(config)
    try:
        corpus = tokenize(sources, config, tokenizer)
        if known is None or not corpus.unknown_share:
            return corpus
    except CorpusError as error:
        if known is None or not isinstance(error.__cause__, UnknownCharacterError):
            raise
        config = config.model_copy(update={"min_frequency": 1, "vocab_size": sys.maxunicode + 1})
    own = _char_tokenizer(make_tokenizer(sources, config))
    assert own is not None
    new = "".join(character for character in own.characters if character not in known.characters)
    if not new:
        return corpus
    warnings.warn(
        f"{config.name}: the vocabulary of {known.vocab_size} characters grows to {known.vocab_size + len(new)}, by "
        f"{new[:40]!r}" + (" and more" if len(new) > 40 else ""),
        stacklevel=3,
    )
    unknown = None if known.unknown is None else known.characters[known.unknown]
    grown = CharTokenizer(known.characters + new, unknown)
    return tokenize(sources, config, grown if tokenizer.end is None else DocumentTokenizer(grown, tokenizer.end))


def _char_tokenizer(tokenizer: Tokenizer) -> CharTokenizer | None:
    """The character tokenizer that `tokenizer` is, or has under its end token; None if it is of another kind."""
    base = tokenizer.base if isinstance(tokenizer, DocumentTokenizer) else tokenizer
    return base if isinstance(base, CharTokenizer) else None


def _resumed_config(checkpoint: Checkpoint, overrides: dict[str, Any]) -> RunConfig:
    """The settings of a resumed run; raise CheckpointError if an override changes what must stay."""
    config = checkpoint.config.override(overrides)
    config = config.model_copy(update={"data": resolve_names(config.data)})
    fixed = {
        "model": [*ModelConfig.model_fields],
        "training": ["batch_size", "optimizer"],
        "data": ["train_frac", "val_frac", "documents", *TOKENS],
        "device": [],
    }
    if config.data.documents:  # these decide the order of the documents
        fixed["training"].append("seq_length")
        fixed["device"].append("seed")
    for section, name in ((section, name) for section, names in fixed.items() for name in names):
        theirs, ours = (getattr(getattr(each, section), name) for each in (checkpoint.config, config))
        if ours != theirs:
            raise CheckpointError(
                f"{checkpoint.path}: expected to continue with its own {name} {theirs}, got {ours}; leave that setting "
                "out, or start a new run"
            )
    return config


def _same_corpus(config: DataConfig, checkpoint: Checkpoint) -> Corpus:
    """The text of `config`; raise CheckpointError unless it and its validation text are those of the checkpoint."""
    problem = f"it was trained on, got another one from {config.name}", "--data"
    try:
        corpus = load_corpus(config, checkpoint.tokenizer)
        if corpus.sha256 == checkpoint.training_state.get("corpus_sha256"):
            if _val_hash(corpus) == checkpoint.training_state.get("val_sha256"):
                return corpus
            other = config.val_data or "the text itself"
            problem = f"it was validated on, got another one from {other}", "--val-data"
    except CorpusError as error:
        if not isinstance(error.__cause__, UnknownCharacterError):
            raise
    raise CheckpointError(
        f"{checkpoint.path}: expected the text {problem[0]}; restore the old text or give its path with {problem[1]}, "
        f"or start a new run with --init-from {quote(str(checkpoint.path))}"
    )


def _val_hash(corpus: Corpus) -> str | None:
    return corpus.val.sha256 if corpus.val else None


def _run_directory(checkpoint: Path) -> Path:
    """The directory of the run that a checkpoint belongs to."""
    if checkpoint.name not in ("last", ".last.old", "best", ".best.old"):
        raise CheckpointError(
            f"{checkpoint}: expected the directory of a run to resume, got a single checkpoint; start a new run from "
            f"its weights with --init-from {quote(str(checkpoint))}"
        )
    return checkpoint.parent


def _check_prompt(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the model cannot read the prompt or follow the sampling settings."""
    where = "generation.prompt (--prompt)"
    try:
        tokenizer.encode(config.generation.prompt)
        where = "generation"
        LogitsPipeline(tokenizer, SamplingParams(**config.generation.settings()))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_evaluations_not_needed(config: RunConfig, corpus: Corpus, size: int) -> None:
    """Without a validation split, raise ConfigError if a setting depends on one, and warn if one was asked for."""
    dependent = {
        "training.patience (--patience)": config.training.patience,
        "training.schedule (--schedule) plateau": config.training.schedule == "plateau",
        "logging.save_top_k (--save-top-k)": config.logging.save_top_k,
    }
    for name, value in dependent.items():
        if value:
            raise ConfigError(f"{name}: expected a validation split, got {size} tokens; raise --val-frac")
    if config.data.val_data or config.data.val_frac > 0:
        warnings.warn(
            f"{config.data.val_data or corpus.name}: its validation split has {size} tokens, so nothing is evaluated "
            "and no best checkpoint is kept; use a longer text or a larger val_frac",
            stacklevel=4,
        )


@contextlib.contextmanager
def _stop_on_signals(run: Run) -> Iterator[None]:
    """End the run after the current step, with everything saved, on Ctrl-C, SIGTERM and SIGHUP (a closed terminal).

    A second Ctrl-C interrupts at once. Ignored signals stay ignored, and a handler that was not set from Python stays,
    because it could not be restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return

    def stop(signum: int, frame: Any) -> None:
        run.stopped_by = signum
        run.trainer.stop()
        if signum == signal.SIGINT and distributed.world_size() == 1:  # torchrun repeats the one that it got
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    run.stopped_by = None
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
