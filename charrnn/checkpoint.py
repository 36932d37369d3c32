"""A checkpoint is a directory that explains itself: safetensors and JSON, no pickle.

    model.safetensors       weights; half precision on disk is read back as fp32
    config.json             the architecture, and every setting of the run
    tokenizer.json          the vocabulary
    training_state.json     where the run stood, its validation loss, the text it read
    optimizer.safetensors   only where a run can be resumed: the optimizer's memory and the carried state

It is written beside its place, synced to disk and renamed, so a crash at any moment leaves the old one or the new one.
A run's directory holds `best/`, `last/` and `metrics.jsonl`.
"""

import contextlib
import functools
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from charrnn.atomic import rename
from charrnn.config import RENAMED_BACKENDS, ModelConfig, RunConfig, parse_config, with_new_names
from charrnn.data.tokenizer import Tokenizer, tokenizer_from_json
from charrnn.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # what only reads weights does without PyTorch, which takes seconds to load
    import torch
    from torch import Tensor

    from charrnn.models.recurrent import CharModel

FORMAT = 1

FILES = ("config.json", "tokenizer.json", "training_state.json", "model.safetensors")

OPTIMIZER = "optimizer.safetensors"

STALE = 3600  # seconds after which nobody writes to a temporary directory any more

ATTEMPTS = 20  # at reading a checkpoint that is being replaced


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint directory holds.

    Attributes:
        path: the directory.
        config: of the run.
        tokenizer: the vocabulary.
        weights: by their names in the model's state_dict, in fp32.
        training_state: where the run stood.
        bytes: size of its files on disk, without the optimizer's.
        tensors: what `Trainer.load_state_dict` needs, where it was read to resume.
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
        tokenizer: the one it was trained with.
        config: of the run; its model section is replaced by what `model` is.
        training_state: plain numbers and strings.
        tensors: what `Trainer.state_dict` gave, to resume from.
        dtype: of the weights on disk; None keeps fp32.

    Raises:
        CheckpointError: something else stands at `path`; it is left alone.
        OSError: it cannot be written; what was at `path` is untouched.
    """
    import safetensors.torch

    path = Path(path).resolve()  # a symbolic link keeps pointing to its directory
    _refuse_foreign(path)
    _remove_stale(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")  # another process may save to the same path
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


def load_checkpoint(path: str | Path, resume: bool = False) -> Checkpoint:
    """Read a checkpoint directory, or the best checkpoint of a run's directory. Nothing in it is executed.

    All files come from the same save, even if another process replaces the checkpoint at the same time.

    Args:
        path: the directory.
        resume: read the last checkpoint of a run's directory instead, with the tensors to go on training from.

    Raises:
        CheckpointError: there is none, a file is missing or damaged, or the files do not fit each other.
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
    return Checkpoint(
        path,
        config,
        tokenizer,
        _parse_weights(path / "model.safetensors", files["model.safetensors"], config.model, tokenizer.vocab_size),
        state,
        sum(len(files[name]) for name in FILES),
        _parse_tensors(path / OPTIMIZER, files[OPTIMIZER]) if resume else None,
    )


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
        raise CheckpointError(f"{str(path)!r}: expected a checkpoint or the directory of a run, got {got}")
    inside = sorted(entry.name for entry in path.iterdir() if holds_run(entry))
    got = f"a folder that holds {', '.join(inside)}; name one" if inside else "a folder without one"
    raise CheckpointError(f"{str(path)!r}: expected a checkpoint or the directory of a run, got {got}")


def holds_run(path: str | Path) -> bool:
    """Whether `path` is a checkpoint or the directory of a run."""
    path = Path(path).absolute()
    return any(_complete(candidate) for candidate in (path, path / "best", path / "last"))


def _complete(path: Path) -> Path | None:
    """`path` if a checkpoint is there, else the old one that a crash between two renames left beside it, else None."""
    places = (path, _old(path.resolve()))
    return next((place for place in places if (place / "config.json").is_file()), None)


def _parse_weights(path: Path, data: bytes, config: ModelConfig, vocab_size: int) -> dict[str, NDArray[np.float32]]:
    try:
        weights = safetensors.numpy.load(data)
    except KeyError:  # bf16, which numpy has not
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
    """A checkpoint may replace another checkpoint or an empty folder, and nothing else."""
    if path.is_dir() and (not any(path.iterdir()) or is_checkpoint(path)):
        return
    if path.exists():
        inside = f" with {next(iter(sorted(_others(path))), 'no checkpoint')!r} in it" if path.is_dir() else ""
        raise CheckpointError(
            f"{path}: expected a new path or an old checkpoint to replace, got something else there{inside}; move it, "
            "or choose another path"
        )


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint of ours with nothing else in it, which may be replaced or removed."""
    try:
        about = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and {"format", "config"} <= about.keys() and not _others(path)


def _others(path: Path) -> set[str]:
    """The names in a folder that are not those of a checkpoint's files, or of what file managers leave."""
    return {entry.name for entry in path.iterdir()} - {*FILES, OPTIMIZER, ".DS_Store", "Thumbs.db", "desktop.ini"}


def _remove_stale(path: Path) -> None:
    """Remove what saves to `path` left behind when their process was killed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        with contextlib.suppress(FileNotFoundError):  # another process ends its save
            if left.stat().st_mtime < time.time() - STALE:
                shutil.rmtree(left, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _replace(path: Path, new: Path) -> None:
    """Put directory `new` in the place of `path`: in two renames, for full directories cannot be swapped portably."""
    if path.exists():
        shutil.rmtree(_old(path), ignore_errors=True)
        rename(path, _old(path))
    rename(new, path)
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
    """Write a directory's entries to disk, on file systems that can do it; CIFS, FUSE and WSL may refuse."""
    if os.name == "posix":  # Windows has no handle to sync
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _read_files(path: str | Path, resume: bool) -> tuple[Path, dict[str, bytes]]:
    """The checkpoint directory meant by `path`, and its files by name, all from the same save."""
    for _ in range(ATTEMPTS):
        try:
            found = find_checkpoint(path, prefer="last" if resume else "best")
            with _opened(found) as read:
                return found, {name: read(name) for name in (*FILES, *([OPTIMIZER] if resume else []))}
        except (CheckpointError, FileNotFoundError) as error:  # a save may be replacing the directory: look again
            failure = error
    raise failure


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[Callable[[str], bytes]]:
    """A reader of the files of one directory, which stays the same one even if another takes its name."""
    with contextlib.ExitStack() as stack:
        if os.open in os.supports_dir_fd:
            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            opener = functools.partial(os.open, dir_fd=descriptor)
        else:  # Windows does not rename a directory with an open file in it
            stack.enter_context(open(directory / "config.json", "rb"))
            opener = None

        def read(name: str) -> bytes:
            try:
                with open(name if opener else directory / name, "rb", opener=opener) as file:
                    data = file.read()
            except FileNotFoundError as error:
                raise _missing(directory, name) from error
            if data.startswith(b"version https://git-lfs"):
                raise CheckpointError(
                    f"{directory / name}: expected the file itself, got a Git LFS pointer; run: git lfs pull"
                )
            return data

        yield read


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
