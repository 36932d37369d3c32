"""A checkpoint is a directory that explains itself: safetensors and JSON, no pickle.

    model.safetensors       weights; half precision on disk is read back as fp32
    config.json             the architecture, and every setting of the run
    tokenizer.json          the vocabulary
    training_state.json     where the run stood, its validation loss, the text it read
    optimizer.safetensors   only where a run can be resumed: the optimizer's memory and the carried state

It is written beside its place, synced to disk and renamed, so a crash at any moment leaves the old one or the new one.
A run's directory holds `best/`, `last/` and `metrics.jsonl`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from charrnn.config import ConfigError, ModelConfig, RunConfig, parse_config
from charrnn.tokenizer import Tokenizer, tokenizer_from_json

if TYPE_CHECKING:  # what only reads weights does without PyTorch, which takes seconds to load
    import torch
    from torch import Tensor

    from charrnn.models import CharModel

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is absent, damaged or does not fit; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory holds.

    Attributes:
        path: the directory.
        config: of the run.
        tokenizer: the vocabulary.
        weights: by their names in the model's state_dict, in fp32.
        training_state: where the run stood.
    """

    path: Path
    config: RunConfig
    tokenizer: Tokenizer
    weights: dict[str, NDArray[np.float32]]
    training_state: dict[str, Any]

    @cached_property
    def model(self) -> "CharModel":
        """The model, on the CPU, in fp32 and evaluation mode."""
        import torch

        from charrnn.models import build_model

        model = build_model(self.config.model, self.tokenizer.vocab_size)
        model.load_state_dict({name: torch.tensor(weight) for name, weight in self.weights.items()})
        return model.eval()


def save_checkpoint(
    path: str | Path,
    model: "CharModel",
    tokenizer: Tokenizer,
    config: RunConfig,
    training_state: Mapping[str, Any] | None = None,
    tensors: "Mapping[str, Tensor] | None" = None,
    dtype: "torch.dtype | None" = None,
) -> None:
    """Write a checkpoint directory, replacing the one at `path` if there is one.

    Args:
        path: the directory.
        model: on any device.
        tokenizer: the one it was trained with.
        config: of the run; its model section is replaced by what `model` is.
        training_state: plain numbers and strings.
        tensors: what `Trainer.tensors` gave, to resume from.
        dtype: of the weights on disk; None keeps fp32.

    Raises:
        CheckpointError: something else stands at `path`; it is left alone.
        OSError: it cannot be written; what was at `path` is untouched.
    """
    import safetensors.torch

    path = Path(path).absolute()
    _refuse_foreign(path)
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # left by a crash
    new.mkdir(parents=True)
    try:
        weights = {name: tensor.to("cpu", dtype, copy=True) for name, tensor in model.state_dict().items()}
        config = config.model_copy(update={"model": model.config})
        about = {"format": FORMAT, "config": config.model_dump()}
        _write(new / "model.safetensors", safetensors.torch.save(weights))
        _write(new / "config.json", _json(about))
        _write(new / "tokenizer.json", tokenizer.to_json().encode())
        _write(new / "training_state.json", _json(training_state or {}))
        if tensors is not None:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            _write(new / "optimizer.safetensors", safetensors.torch.save(tensors))
        _sync_directory(new)
        _replace(path, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint directory, or the best checkpoint of a run's directory. Nothing in it is executed.

    Raises:
        CheckpointError: there is none, a file is missing or damaged, or the files do not fit each other.
    """
    path = find_checkpoint(path)
    about = _read_json(path / "config.json")
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path / 'config.json'}: expected format {FORMAT}, got {about.get('format')!r}")
    try:
        config = parse_config(about["config"], str(path / "config.json"))
        tokenizer = tokenizer_from_json(_read(path / "tokenizer.json").decode("utf-8", "replace"))
    except KeyError as error:
        raise CheckpointError(f"{path / 'config.json'}: expected the key {error}, got none") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path / 'tokenizer.json'}: {error}") from error
    weights = _read_weights(path / "model.safetensors", config.model, tokenizer.vocab_size)
    return Checkpoint(path, config, tokenizer, weights, _read_json(path / "training_state.json"))


def find_checkpoint(path: str | Path, prefer: str = "best") -> Path:
    """The checkpoint directory meant by `path`: itself, or in a run's directory its `prefer`red one, `best` or `last`.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    path = Path(path).absolute()
    names = ("best", "last") if prefer == "best" else ("last", "best")
    for candidate in (path, *(path / name for name in names)):
        if (found := _complete(candidate)) is not None:
            return found
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise CheckpointError(f"{path}: expected a checkpoint or the directory of a run, got {got}")
    inside = sorted(entry.name for entry in path.iterdir() if holds_run(entry))
    got = f"a folder that holds {', '.join(inside)}; name one" if inside else "a folder without one"
    raise CheckpointError(f"{path}: expected a checkpoint or the directory of a run, got {got}")


def holds_run(path: str | Path) -> bool:
    """Whether `path` is a checkpoint or the directory of a run."""
    path = Path(path).absolute()
    return any(_complete(candidate) for candidate in (path, path / "best", path / "last"))


def _complete(path: Path) -> Path | None:
    """`path` if a checkpoint is there, else the old one that a crash between two renames left beside it, else None."""
    return next((place for place in (path, _old(path)) if (place / "config.json").is_file()), None)


def _read_weights(path: Path, config: ModelConfig, vocab_size: int) -> dict[str, NDArray[np.float32]]:
    try:
        weights = safetensors.numpy.load(_read(path))
    except KeyError:  # bf16, which numpy has not
        weights = {name: tensor.float().numpy() for name, tensor in load_tensors(path).items()}
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error
    mine, theirs = config.shapes(vocab_size), {name: weight.shape for name, weight in weights.items()}
    if mine != theirs:
        name = next(name for name in mine | theirs if mine.get(name) != theirs.get(name))
        raise CheckpointError(
            f"{path}: expected {name} of shape {mine.get(name, 'none')}, got {theirs.get(name, 'none')}; "
            "these weights belong to another architecture"
        )
    return {name: weight.astype(np.float32, copy=False) for name, weight in weights.items()}


def load_tensors(path: Path) -> "dict[str, Tensor]":
    """Every tensor in a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load(_read(path))
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: expected a whole safetensors file, got a damaged one ({error})")


def _refuse_foreign(path: Path) -> None:
    """A checkpoint may take the place of another one or of an empty folder, and of nothing else."""
    if path.exists() and not (path / "config.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"{path}: expected a new path or an old checkpoint to replace, got something else there")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _replace(path: Path, new: Path) -> None:
    """Put directory `new` in the place of `path`: in two renames, for full directories cannot be swapped portably."""
    if path.exists():
        shutil.rmtree(_old(path), ignore_errors=True)
        path.rename(_old(path))
    new.rename(path)
    _sync_directory(path.parent)
    shutil.rmtree(_old(path), ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk, most likely
        raise OSError(error.errno, f"{error.strerror}; what stood there before is whole", str(path)) from error


def _sync_directory(path: Path) -> None:
    if os.name == "posix":  # Windows has no handle to sync
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected this file in the checkpoint, got none") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got a damaged file ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
