"""A checkpoint is a self-describing directory of safetensors and JSON, without pickle.

    model.safetensors       weights; half precision on disk is read back as fp32
    config.json             the architecture and every setting of the run
    tokenizer.json          the vocabulary
    training_state.json     step, epoch, validation loss and the text of the run
    optimizer.safetensors   only in a run's `last/`: the optimizer's state and the carried state, to resume from

It is written to a temporary directory, synced to disk and renamed, so a crash at any moment leaves the old checkpoint
or the new one. A run's directory holds `best/`, `last/` and `metrics.jsonl`.
"""

import contextlib
import glob
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from charrnn.atomic import remove_leftovers, rename, write_new
from charrnn.config import RENAMED_BACKENDS, ModelConfig, RunConfig, parse_config, with_new_names
from charrnn.data.tokenizer import Tokenizer, tokenizer_from_json
from charrnn.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # PyTorch takes seconds to load, and reading the weights does not need it
    import torch
    from torch import Tensor

    from charrnn.models.recurrent import CharModel

FORMAT = 1

FILES = ("config.json", "tokenizer.json", "training_state.json", "model.safetensors")

OPTIMIZER = "optimizer.safetensors"

STALE = 3600  # seconds after which a temporary directory must be a killed process's

ATTEMPTS = 20  # to read a checkpoint that another process is replacing


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint directory.

    Attributes:
        path: the directory.
        config: of the run.
        tokenizer: the vocabulary.
        weights: the model's state_dict, in fp32.
        training_state: step, epoch, losses, the text.
        bytes: size of the files on disk, without the optimizer's.
        tensors: for `Trainer.load_state_dict`, if read to resume.
    """

    path: Path
    config: RunConfig
    tokenizer: Tokenizer
    weights: dict[str, NDArray[np.float32]]
    training_state: dict[str, Any]
    bytes: int
    tensors: "dict[str, Tensor] | None" = None

    @cached_property
    def model(self) -> "CharModel":
        """The model, on the CPU, in fp32 and evaluation mode."""
        import torch

        from charrnn.models.build import build_model

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
        tokenizer: of the model.
        config: of the run; its model section is replaced by that of `model`.
        training_state: plain numbers and strings.
        tensors: `Trainer.state_dict()`, to resume from.
        dtype: of the weights on disk; None keeps fp32.

    Raises:
        CheckpointError: `path` is something else than a checkpoint; it is left alone.
        OSError: it cannot be written; an old checkpoint at `path` is untouched.
    """
    import safetensors.torch

    path = Path(path).resolve()  # a symbolic link keeps pointing to its directory
    _refuse_foreign(path)
    remove_leftovers(path.parent.glob(f".{glob.escape(path.name)}.*.new"), STALE)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")  # another process may save to the same path
    weights = {name: tensor.to("cpu", dtype, copy=True) for name, tensor in model.state_dict().items()}
    about = {"format": FORMAT, "config": config.model_copy(update={"model": model.config}).model_dump()}
    files = {
        "model.safetensors": safetensors.torch.save(weights),
        "config.json": _json(about),
        "tokenizer.json": tokenizer.to_json().encode(),
        "training_state.json": _json(training_state or {}),
    }
    if tensors is not None:
        files[OPTIMIZER] = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    try:
        new.mkdir(parents=True)
        for name, data in files.items():
            try:
                write_new(new / name, [data])
            except OSError as error:  # most likely a full disk
                problem = f"{error.strerror}; an old checkpoint is untouched"
                raise OSError(error.errno, problem, str(new / name)) from error
        _sync_directory(new)
        _replace(path, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_checkpoint(path: str | Path, resume: bool = False) -> Checkpoint:
    """Read a checkpoint directory, or the best checkpoint of a run's directory. Nothing in it is executed.

    All files come from the same save, even if another process replaces the checkpoint meanwhile.

    Args:
        path: the directory.
        resume: read the last checkpoint of a run's directory instead, with the tensors for resuming.

    Raises:
        CheckpointError: there is none, a file is missing or damaged, or the files do not match.
    """
    path, files = _read_files(path, resume)
    about = _parse_json(path / "config.json", files["config.json"])
    if (theirs := about.get("format")) != FORMAT:
        newer = ", written by a newer charrnn; update this one"
        raise CheckpointError(
            f"{path / 'config.json'}: expected format {FORMAT}, got {theirs!r}"
            + (newer if isinstance(theirs, int) and theirs > FORMAT else "")
        )
    try:
        config = parse_config(with_new_names(about["config"]), str(path / "config.json"))
        tokenizer = tokenizer_from_json(files["tokenizer.json"].decode("utf-8", "replace"))
    except KeyError as error:
        raise CheckpointError(f"{path / 'config.json'}: expected the key {error}, got none") from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path / 'tokenizer.json'}: {error}") from error
    state = _parse_json(path / "training_state.json", files["training_state.json"])
    if isinstance(progress := state.get("progress"), dict) and "backend" in progress:
        progress["backend"] = RENAMED_BACKENDS.get(progress["backend"], progress["backend"])
    weights = _parse_weights(path / "model.safetensors", files["model.safetensors"], config.model, tokenizer.vocab_size)
    tensors = _parse_tensors(path / OPTIMIZER, files[OPTIMIZER]) if resume else None
    return Checkpoint(path, config, tokenizer, weights, state, sum(len(files[name]) for name in FILES), tensors)


def find_checkpoint(path: str | Path, prefer: Literal["best", "last"] = "best") -> Path:
    """The checkpoint directory at `path`, or in a run's directory the `prefer`red one if it exists, else the other.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    path = Path(path).absolute()
    other = "last" if prefer == "best" else "best"
    for candidate in (path, path / prefer, path / other):
        if (found := _complete(candidate)) is not None:
            return found
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
        raise CheckpointError(f"{str(path)!r}: expected a checkpoint or the directory of a run, got {got}")
    inside = sorted(entry.name for entry in path.iterdir() if holds_run(entry))
    got = f"a folder that holds {', '.join(inside)}; name one" if inside else "a folder without one"
    raise CheckpointError(f"{str(path)!r}: expected a checkpoint or the directory of a run, got {got}")


def holds_run(path: str | Path) -> bool:
    """Return whether `path` is a checkpoint or the directory of a run."""
    path = Path(path).absolute()
    return any(_complete(candidate) for candidate in (path, path / "best", path / "last"))


def _complete(path: Path) -> Path | None:
    """`path` if it is a checkpoint, else the old one that a crash between two renames left beside it, else None."""
    places = (path, _old(path.resolve()))
    return next((place for place in places if (place / "config.json").is_file()), None)


def _parse_weights(path: Path, data: bytes, config: ModelConfig, vocab_size: int) -> dict[str, NDArray[np.float32]]:
    try:
        weights = safetensors.numpy.load(data)
    except KeyError:  # bf16, which NumPy lacks
        weights = {name: tensor.float().numpy() for name, tensor in _parse_tensors(path, data).items()}
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


def _parse_tensors(path: Path, data: bytes) -> "dict[str, Tensor]":
    import safetensors.torch

    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: expected a whole safetensors file, got a damaged one ({error})")


def _refuse_foreign(path: Path) -> None:
    """Raise unless `path` is free, an empty folder or another checkpoint."""
    if path.is_dir() and (not any(path.iterdir()) or is_checkpoint(path)):
        return
    if path.exists():
        inside = f" with {next(iter(sorted(_others(path))), 'no checkpoint')!r} in it" if path.is_dir() else ""
        raise CheckpointError(
            f"{path}: expected a new path or an old checkpoint to replace, got other files{inside}; move it, "
            "or choose another path"
        )


def is_checkpoint(path: Path) -> bool:
    """Return whether `path` is one of our checkpoints and nothing else, so it may be replaced or removed."""
    try:
        about = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and {"format", "config"} <= about.keys() and not _others(path)


def _others(path: Path) -> set[str]:
    """The names in a folder, except a checkpoint's files and those that file managers create."""
    return {entry.name for entry in path.iterdir()} - {*FILES, OPTIMIZER, ".DS_Store", "Thumbs.db", "desktop.ini"}


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _replace(path: Path, new: Path) -> None:
    """Move directory `new` to `path`, in two renames because no portable call swaps two full directories."""
    if path.exists():
        shutil.rmtree(_old(path), ignore_errors=True)
        rename(path, _old(path))
    rename(new, path)
    _sync_directory(path.parent)
    shutil.rmtree(_old(path), ignore_errors=True)


def _sync_directory(path: Path) -> None:
    """Sync a directory's entries to disk, on file systems that can; CIFS, FUSE and WSL may refuse."""
    if os.name == "posix":  # Windows cannot open a directory
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _read_files(path: str | Path, resume: bool) -> tuple[Path, dict[str, bytes]]:
    """The checkpoint directory at `path`, and its files by name, all from the same save."""
    names = [*FILES, OPTIMIZER] if resume else FILES
    failure = CheckpointError(
        f"{path}: expected a checkpoint to read, got one that is replaced all the time; try again"
    )
    for _ in range(ATTEMPTS):  # another process may replace the directory
        try:
            found = find_checkpoint(path, prefer="last" if resume else "best")
            before = _identity(found)
            files = {name: (found / name).read_bytes() for name in names}
            if _identity(found) == before:
                break
        except FileNotFoundError as error:
            failure = _missing(found, Path(error.filename).name)
        except CheckpointError as error:
            failure = error
    else:
        raise failure
    pointer = next((name for name in names if files[name].startswith(b"version https://git-lfs")), None)
    if pointer:
        raise CheckpointError(f"{found / pointer}: expected the file itself, got a Git LFS pointer; run: git lfs pull")
    return found, files


def _identity(path: Path) -> tuple[int, ...]:
    """Numbers that change if another directory takes this name."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _missing(directory: Path, name: str) -> CheckpointError:
    if name == OPTIMIZER:
        return CheckpointError(
            f"{directory}: expected a run to resume, got a checkpoint without {OPTIMIZER}; start a new run from its "
            f"weights with --init-from {quote(str(directory))}"
        )
    return CheckpointError(f"{directory / name}: expected this file in the checkpoint, got none")


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got a damaged file ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
