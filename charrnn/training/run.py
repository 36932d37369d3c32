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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any, Self

from filelock import FileLock, Timeout

from charrnn.atomic import is_writable
from charrnn.checkpoint import Checkpoint, holds_run, load_checkpoint, save_checkpoint
from charrnn.config import TOKENS, DataConfig, ModelConfig, RunConfig
from charrnn.data.corpora import absolute_name, resolve_names
from charrnn.data.corpus import Corpus, Extent, load_corpus, make_tokenizer, open_sources, tokenize
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

# ------------------------------------------------------------------------------------------------------------ a run


@dataclass
class Run:
    """A training run: its text, its model, its trainer, and the directory it is written to.

    Attributes:
        directory: None where nothing is written, as by all ranks but the first.
        stopped_by: the number of the signal that stopped it, if one did.
    """

    config: RunConfig
    corpus: Corpus
    generator: TextGenerator
    trainer: Trainer
    directory: Path | None
    stopped_by: int | None = None

    @classmethod
    def start(cls, config: RunConfig, out: str | Path | None = None, init_from: str | Path | None = None) -> Self:
        """A new run.

        Args:
            config: all of its settings.
            out: its directory; None writes nothing.
            init_from: a checkpoint whose weights and vocabulary to start from; what `config` says of them gives way.
                Characters of the text that it does not know are added to its vocabulary.

        Raises:
            CheckpointError: `out` holds a run already, or `init_from` no checkpoint.
            CorpusError: the text cannot be had or is too short.

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
            data = config.data.model_copy(update=kept)
            config = config.model_copy(update={"model": source.config.model, "data": data})
        share_pipe(config.data.name, distributed.broadcast_each)
        corpus = _corpus_for(source.tokenizer, config.data) if source else load_corpus(config.data)
        _check_prompt(config, corpus.tokenizer)
        vocab_size = corpus.tokenizer.vocab_size
        if source:
            model = with_vocabulary(source.model, vocab_size)
            config = config.model_copy(update={"model": model.config})
        else:
            model = build_model(config.model, vocab_size, config.device.seed)
        return cls._assemble(config, corpus, TextGenerator(model, corpus.tokenizer, config), directory)

    @classmethod
    def resume(cls, path: str | Path, overrides: dict[str, Any] | None = None) -> Self:
        """Go on with the run at `path`, at the very next batch.

        Args:
            path: the run's directory.
            overrides: settings to change, named as on the command line; the architecture and the text must stay.

        Raises:
            CheckpointError: there is nothing to resume, or it does not fit the overrides or the text.
        """
        checkpoint = load_checkpoint(path, resume=True)
        directory = _run_directory(checkpoint.path)
        config = _resumed_config(checkpoint, overrides or {})
        state = checkpoint.training_state
        share_pipe(config.data.name, distributed.broadcast_each)
        corpus = _same_corpus(config.data, checkpoint)
        _check_prompt(config, checkpoint.tokenizer)
        generator = TextGenerator(checkpoint.model, checkpoint.tokenizer, config, state)
        run = cls._assemble(config, corpus, generator, directory)
        tensors = checkpoint.tensors
        streams = next((len(value) for name, value in tensors.items() if name.startswith("state.")), None)
        if streams not in (None, run.trainer.dataset.batch_size):
            raise CheckpointError(
                f"{path}: expected to go on with its {streams} streams, got {run.trainer.dataset.batch_size}: the text "
                "is too short for them with another seq_length; leave that as it was"
            )
        try:
            run.trainer.load_state_dict(state["progress"], tensors)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: expected a whole training_state.json and optimizer.safetensors, got damaged ones "
                f"({error})"
            ) from error
        known = (run.trainer.progress.best_loss, _best_loss(directory))
        run.trainer.progress.best_loss = min((x for x in known if x is not None and math.isfinite(x)), default=None)
        return run

    @classmethod
    def _assemble(cls, config: RunConfig, corpus: Corpus, generator: TextGenerator, directory: Path | None) -> Self:
        if len(set(distributed.all_gather((corpus.sha256, corpus.tokenizer.to_json())))) > 1:
            raise CorpusError(
                f"{corpus.name}: expected the same text and vocabulary in all {distributed.world_size()} processes, "
                "got different ones; copy the file to every machine"
            )
        splits = corpus.split(config.data.train_frac, config.data.val_frac)
        try:
            trainer = Trainer(
                generator.model,
                splits.train,
                splits.val,
                config.training,
                config.device,
                config.logging.log_interval,
                _bits_per_character(corpus.predicted("val", config.data.train_frac, config.data.val_frac)),
                corpus.end,
            )
        except CorpusError as error:
            raise CorpusError(f"{corpus.name} ({len(corpus.tokens):,} tokens): {error}") from error
        asked = [name for name, value in _needs_evaluations(config).items() if value]
        if asked and len(splits.val) < 2:
            raise ConfigError(
                f"{asked[0]}: expected a validation split to go by, got {len(splits.val)} tokens; raise --val-frac"
            )
        if (config.data.val_data or config.data.val_frac > 0) and len(splits.val) < 2:
            warnings.warn(
                f"{config.data.val_data or corpus.name}: its validation split has {len(splits.val)} tokens, so nothing "
                "is evaluated and no best checkpoint chosen; use a longer text or a larger val_frac",
                stacklevel=3,
            )
        return cls(config, corpus, generator, trainer, directory if distributed.rank() == 0 else None)

    def fit(self, *callbacks: Callback) -> TextGenerator:
        """Train to the end of the budget, or until Ctrl-C, SIGTERM or SIGHUP, which save first.

        Returns:
            The best model, where one was saved, else the last.

        Raises:
            CheckpointError: another process writes to the directory, or has written to it since this run was loaded.
        """
        with self._locked(), _stop_on_signals(self):
            self.trainer.fit(*self._own_monitors(), *callbacks)
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
        """Locks the run's directory so that two processes cannot write to it."""
        if self.directory is None:
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise CheckpointError(
                f"{self.directory}: expected a run that nobody else trains, got one that another process is training"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks is no reason to stop
                raise
        try:
            self._refuse_changed(self.directory)
            yield
        finally:
            lock.release()

    def _refuse_changed(self, directory: Path) -> None:
        """A run goes on only from where its directory stands: another process may have trained it in the meantime."""
        progress, last = self.trainer.progress, directory / "last"
        if progress.saved_at < 0:
            _refuse_taken(directory)
        elif last.exists() and (step := load_checkpoint(last).training_state.get("step", 0)) > progress.step:
            raise CheckpointError(
                f"{directory}: expected a run at step {progress.step:,}, as it was loaded, got one that another "
                f"process has trained to step {step:,}; resume it again"
            )

    def _own_monitors(self) -> list[Callback]:
        """What writes to the run's directory."""
        if self.directory is None:
            return []
        own: list[Callback] = []
        if self.config.logging.tensorboard:
            own.append(
                TensorBoardWriter(
                    Path(self.config.logging.log_dir) / self.directory.name,
                    TextGenerator(self.trainer.evaluated_model, self.generator.tokenizer, self.config),
                    self.trainer.progress.step,
                )
            )
        metrics = MetricsFile(self.directory / "metrics.jsonl", self.trainer.progress.step)
        saver = CheckpointSaver(self.directory, self._save, self.config.logging.save_top_k, self.config.model.type)
        return [saver, metrics, *own]

    def _save(self, path: Path, resumable: bool, val_loss: float | None) -> None:
        tensors = self.trainer.state_dict() if resumable else None
        model, tokenizer = self.trainer.evaluated_model, self.generator.tokenizer
        save_checkpoint(path, model, tokenizer, self.config, self._training_state(val_loss), tensors)

    def _training_state(self, val_loss: float | None) -> dict[str, Any]:
        """Where the run stands; `val_loss` is that of the present weights, None where it was not measured."""
        progress = asdict(self.trainer.progress)
        return {
            "corpus": self.config.data.name,
            "corpus_sha256": self.corpus.sha256,
            "val_sha256": _val_hash(self.corpus),
            "step": progress["step"],
            "epoch": self.trainer.epoch,
            "val_loss": val_loss,
            "val_bpc": None if val_loss is None else self.trainer.to_bpc(val_loss),
            "progress": progress,
        }


def _bits_per_character(extent: Extent) -> Callable[[float], float]:
    """What turns a loss in nats per token into bits per character."""
    return lambda loss: extent.bpc(loss / math.log(2))


def _needs_evaluations(config: RunConfig) -> dict[str, Any]:
    """The settings that mean nothing without a validation split, by name; false where they are not asked for."""
    return {
        "training.patience (--patience)": config.training.patience,
        "training.schedule (--schedule) plateau": config.training.schedule == "plateau",
        "logging.save_top_k (--save-top-k)": config.logging.save_top_k,
    }


def new_run_directory(config: RunConfig) -> Path:
    """Create a directory for a run that nobody named: corpus, model and the time, in the configured folder.

    No other run gets the same one, even if it starts in the same second.

    Raises:
        ConfigError: the configured folder cannot be written to.
    """
    stem = "stdin" if config.data.name == "-" else Path(absolute_name(config.data.name)).stem
    stem = re.sub(r"[^\w.]+", "-", stem).encode()[:100].decode(errors="ignore")  # a name has at most 255 bytes
    name = f"{stem.strip('-.') or 'text'}-{config.model.type}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.logging.checkpoint_dir)
    if not is_writable(folder):
        raise ConfigError(
            "logging.checkpoint_dir (--checkpoint-dir): expected a folder that can be written to, got "
            f"{folder.resolve()}; choose another, or name the run's own with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for path in itertools.chain([folder / name], (folder / f"{name}-{i}" for i in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _refuse_taken(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: expected a directory for the run, got a file; choose another with --out")
    if holds_run(directory) or any((directory / name).exists() for name in ("best", "last", "metrics.jsonl")):
        raise CheckpointError(
            f"{directory}: expected a new directory, got one that holds a run; go on with it by --resume "
            f"{quote(str(directory))}, or choose another with --out"
        )


def _corpus_for(tokenizer: Tokenizer, config: DataConfig) -> Corpus:
    """The text in the tokens of a trained model; characters that it does not know are added to their end.

    Where there is a token for rare characters, those join that this text's own vocabulary would have. The end token
    joins where the text is of documents.
    """
    if config.documents and tokenizer.end is None:
        tokenizer = DocumentTokenizer(tokenizer)
    base, sources = _without_end(tokenizer), open_sources(config)
    try:
        corpus = tokenize(sources, config, tokenizer)
        if not isinstance(base, CharTokenizer) or not corpus.unknown_share:
            return corpus
    except CorpusError as error:
        if not isinstance(error.__cause__, UnknownCharacterError) or not isinstance(base, CharTokenizer):
            raise
        config = config.model_copy(update={"min_frequency": 1, "vocab_size": sys.maxunicode + 1})
    own = _without_end(make_tokenizer(sources, config))
    new = "".join(character for character in own.characters if character not in base.characters)
    if not new:
        return corpus
    known = base.vocab_size
    warnings.warn(
        f"{config.name}: the vocabulary of {known} characters grows to {known + len(new)}, by {new[:40]!r}"
        + (" and more" if len(new) > 40 else ""),
        stacklevel=3,
    )
    unknown = None if base.unknown is None else base.characters[base.unknown]
    grown = CharTokenizer(base.characters + new, unknown)
    return tokenize(sources, config, grown if tokenizer.end is None else DocumentTokenizer(grown, tokenizer.end))


def _without_end(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.base if isinstance(tokenizer, DocumentTokenizer) else tokenizer


def _resumed_config(checkpoint: Checkpoint, overrides: dict[str, Any]) -> RunConfig:
    config = checkpoint.config.override(overrides)
    config = config.model_copy(update={"data": resolve_names(config.data)})
    fixed = [("model", name) for name in ModelConfig.model_fields]
    fixed += [
        ("training", "batch_size"),
        ("training", "optimizer"),
        *(("data", name) for name in ("train_frac", "val_frac", "documents", *TOKENS)),
    ]
    if config.data.documents:  # they decide about which document comes when
        fixed += [("training", "seq_length"), ("device", "seed")]
    for section, name in fixed:
        theirs, mine = (getattr(getattr(c, section), name) for c in (checkpoint.config, config))
        if mine != theirs:
            raise CheckpointError(
                f"{checkpoint.path}: expected to go on with its own {name} {theirs}, got {mine}; leave that setting "
                "out, or start a new run"
            )
    return config


def _same_corpus(config: DataConfig, checkpoint: Checkpoint) -> Corpus:
    """The text of `config`, and that to choose by, if they are those that the checkpoint was trained with."""
    other, flag = config.name, "--data"
    try:
        corpus = load_corpus(config, checkpoint.tokenizer)
        if corpus.sha256 == checkpoint.training_state.get("corpus_sha256"):
            if _val_hash(corpus) == checkpoint.training_state.get("val_sha256"):
                return corpus
            other, flag = config.val_data or "the text itself", "--val-data"
    except CorpusError as error:
        if not isinstance(error.__cause__, UnknownCharacterError):
            raise
    what = "trained on" if flag == "--data" else "validated on"
    raise CheckpointError(
        f"{checkpoint.path}: expected the text it was {what}, got another one from {other}; put the old text "
        f"back or name its place with {flag}, or start a new run with --init-from {quote(str(checkpoint.path))}"
    )


def _val_hash(corpus: Corpus) -> str | None:
    return corpus.val.sha256 if corpus.val else None


def _best_loss(directory: Path) -> float | None:
    """The validation loss of a run's best checkpoint, which may be newer than the last one if the run was killed."""
    if not holds_run(directory / "best"):
        return None
    return load_checkpoint(directory / "best").training_state.get("val_loss")


def _run_directory(checkpoint: Path) -> Path:
    """The run that a checkpoint to go on from belongs to."""
    if checkpoint.name not in ("last", ".last.old", "best", ".best.old"):
        raise CheckpointError(
            f"{checkpoint}: expected the directory of a run to resume, got a checkpoint alone; start a new run from "
            f"its weights with --init-from {quote(str(checkpoint))}"
        )
    return checkpoint.parent


def _check_prompt(config: RunConfig, tokenizer: Tokenizer) -> None:
    try:
        tokenizer.encode(config.generation.prompt)
    except UnknownCharacterError as error:
        raise ConfigError(f"generation.prompt (--prompt): {error}") from error
    try:
        LogitsPipeline(tokenizer, SamplingParams(**config.generation.settings()))
    except ValueError as error:
        raise ConfigError(f"generation: {error}") from error


@contextlib.contextmanager
def _stop_on_signals(run: Run) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal) end the run after the present step, with everything saved.

    Ctrl-C again interrupts at once. A signal that is ignored stays ignored, and a handler that was not set from Python
    stays, because it could not be put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return

    def stop(signum: int, frame: Any) -> None:
        run.stopped_by = signum
        run.trainer.stop()
        if signum == signal.SIGINT and distributed.world_size() == 1:  # torchrun hands on the one it got, too
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
