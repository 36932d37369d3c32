"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

ATTEMPTS = 8  # to rename, 1.3 s in all

Blocks = Iterable[bytes | memoryview]


def write_atomically(path: Path, data: bytes | Blocks, sync: bool = True) -> None:
    """Write a new file in the same folder and rename it, so an old file stays until the new one is complete.

    A symbolic link keeps pointing to its file. A pipe or a device is written to directly.

    Args:
        path: the file.
        data: its bytes, or blocks of them in order.
        sync: flush the file to disk before the rename, so that it also survives a power cut.

    Raises:
        OSError: it cannot be written; an old file is untouched.
    """
    blocks = [data] if isinstance(data, bytes) else data
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.writelines(blocks)
        return
    path = path.resolve()
    new = path.with_name(f".{secrets.token_hex(8)}.new")  # short: the file's own name may be as long as allowed
    try:
        write_new(new, blocks, sync)
        if path.exists():
            shutil.copymode(path, new)
        rename(new, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def write_new(path: Path, blocks: Blocks, sync: bool = True) -> None:
    """Write a file that does not exist yet.

    Raises:
        OSError: it exists or cannot be written.
    """
    with open(path, "xb") as file:
        file.writelines(blocks)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def remove_leftovers(paths: Iterable[Path], age: float) -> None:
    """Remove the temporary files and directories that are older than `age` seconds: those of killed processes."""
    for path in paths:
        with contextlib.suppress(OSError):  # another process may finish with it at this moment
            if time.time() - path.stat().st_mtime > age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_writable(folder: Path) -> bool:
    """Return whether files can be made in `folder` or, if it does not exist, in the nearest folder above it."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    probe = folder / f".{secrets.token_hex(8)}.new"
    try:
        probe.touch(exist_ok=False)  # on some systems the permissions alone do not tell
        probe.unlink()
    except OSError:
        return False
    return True


def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory. On Windows, wait for a virus scanner that has it open for a moment.

    Raises:
        OSError: it cannot be renamed.
    """
    for attempt in range(ATTEMPTS):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.01 * 2**attempt)
