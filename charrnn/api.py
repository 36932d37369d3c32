"""The public functions: create, train, evaluate, save and describe models.

generator = charrnn.train("shakespeare", max_seconds=60)
print(generator.generate("ROMEO:", length=200, seed=1))
charrnn.save_model(generator, "my-model")
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from charrnn.checkpoint import load_checkpoint, save_checkpoint
from charrnn.config import ModelConfig, RunConfig, load_config, refuse_unknown
from charrnn.data.corpora import absolute_name
from charrnn.data.corpus import Corpus, load_corpus
from charrnn.data.tokenizer import TOKENIZERS, Tokenizer
from charrnn.errors import ConfigError, CorpusError
from charrnn.generation.generator import TextGenerator
from charrnn.models.build import build_model, count_parameters
from charrnn.training import distributed
from charrnn.training.evaluation import Evaluation, evaluation_config
from charrnn.training.evaluation import evaluate as mean_loss
from charrnn.training.events import Callback
from charrnn.training.run import Run


def create_model(tokenizer: Tokenizer, type: str = "lstm", seed: int = 0, **options: Any) -> TextGenerator:
    """An untrained model for the vocabulary of `tokenizer`.

    Args:
        tokenizer: turns text into ids.
        type: `lstm`, `gru` or `rnn`.
        seed: of the weights.
        **options: any other field of `ModelConfig`: hidden_size, num_layers, dropout, embedding_dim.

    Raises:
        ConfigError: an unknown option, or a value out of range.
    """
    refuse_unknown(options, ModelConfig, "model option")
    kind = {"tokenizer": tokenizer.kind} if tokenizer.kind in TOKENIZERS else {}  # else it is a class of the caller
    config = RunConfig().override({"model_type": type, **kind, **options})
    return TextGenerator(build_model(config.model, tokenizer.vocab_size, seed), tokenizer, config)


def save_model(generator: TextGenerator, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint directory that `load_model` reads, replacing the checkpoint at `path` if there is one.

    Args:
        generator: the model to save, with its tokenizer and settings.
        path: the directory.
        dtype: of the weights on disk; `torch.float16` halves the file, None keeps fp32.

    Raises:
        CheckpointError: `path` is something else than a checkpoint.
        OSError: it cannot be written; an old checkpoint at `path` is untouched.
    """
    config = generator.config or RunConfig()
    save_checkpoint(path, generator.model, generator.tokenizer, config, generator.training_state, dtype=dtype)


def train(
    data: str | Path | None = None,
    config: RunConfig | str | Path | None = None,
    *,
    out: str | Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    **overrides: Any,
) -> TextGenerator:
    """Train a model. In a script that torchrun started, its processes train it together.

    Args:
        data: a corpus name, or the path of a text file, a folder of them or a glob; None is the text that `config`
            names. A `Path` is never the name of a corpus.
        config: the settings, or a YAML file of them; None is the defaults.
        out: the run's directory, for `best/`, `last/` and `metrics.jsonl`; None writes nothing.
        callbacks: called with every event.
        **overrides: any setting, named as on the command line: `hidden_size=256, max_seconds=60, model_type="gru",
            tokenizer="bpe"`.

    Returns:
        The best model by validation loss if `out` is given, else the last.

    Raises:
        ConfigError: a setting is unknown or out of range.
        CorpusError: the text cannot be read or is too short.
        CheckpointError: `out` holds a run already.
        ConnectionError: another process that torchrun started did not connect, or ended early.
        DivergedError: the loss became NaN or infinite; the last good checkpoint is kept.
    """
    config = config if isinstance(config, RunConfig) else load_config(config) if config else RunConfig()
    if data is not None:
        overrides["data"] = absolute_name(data) if isinstance(data, Path) else data
    with distributed.process_group():
        return Run.start(config.override(overrides), out).fit(*callbacks)


def evaluate(
    generator: TextGenerator,
    data: str | Path | Corpus | None = None,
    split: str = "val",
    progress: Callable[[range], Iterable[int]] = iter,
    **settings: Any,
) -> Evaluation:
    """Measure how well a model predicts the whole `train`, `val` or `test` split of a text, or `all` of it.

    Args:
        generator: a model and its tokenizer.
        data: a corpus name, or the path of a text file, a folder of them or a glob, or a corpus encoded with the
            model's tokenizer; None is the text that the model was trained on.
        split: which part of it.
        progress: wraps the loop to show its progress, as `tqdm` does.
        **settings: fields of `DataConfig` that differ from the model's run: `train_frac`, `val_frac`, `encoding`, …

    Raises:
        ConfigError: a setting is unknown or out of range, or a corpus has another tokenizer.
        CorpusError: the text cannot be read, has a character that the model does not know, or the split is too short.
    """
    config = evaluation_config(generator, None if isinstance(data, Corpus) else data, **settings)
    corpus = data if isinstance(data, Corpus) else load_corpus(config, generator.tokenizer)
    if corpus.tokenizer != generator.tokenizer:
        raise ConfigError(
            f"{corpus.name}: expected a corpus in the model's own tokens, got other ones; load it with "
            "load_corpus(…, generator.tokenizer)"
        )
    splits = {**corpus.split(config.train_frac, config.val_frac)._asdict(), "all": corpus.tokens}
    if split not in splits:
        raise ConfigError(f"split: expected one of {', '.join(splits)}, got {split!r}")
    tokens = splits[split]
    if len(tokens) < 2:
        raise CorpusError(f"{corpus.name}: expected at least 2 tokens in the {split} split, got {len(tokens)}")
    extent = corpus.predicted(split, config.train_frac, config.val_frac)
    if not extent.characters:
        raise CorpusError(f"{corpus.name}: expected a character to begin in the {split} split, got none; use more text")
    return Evaluation(mean_loss(generator.model, tokens, progress=progress, end=corpus.end), *extent)


def get_model_info(path: str | Path) -> dict[str, Any]:
    """Describe a checkpoint: architecture, vocabulary, parameters, training so far, and size on disk.

    The size is that of the files that generation needs, without those for resuming.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    checkpoint = load_checkpoint(path)
    return {
        "path": str(checkpoint.path),
        "model": checkpoint.config.model.model_dump(),
        "vocab_size": checkpoint.tokenizer.vocab_size,
        "parameters": {name: tuple(p.shape) for name, p in checkpoint.model.named_parameters()},
        "num_parameters": count_parameters(checkpoint.model),
        "bytes": checkpoint.bytes,
        "training": checkpoint.training_state,
    }
