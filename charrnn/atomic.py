"""Files that are written whole or not at all."""

import os
import secrets
import shutil
import time
from pathlib import Path

ATTEMPTS = 8  # at a rename, 1.3 s in all


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it, so that an old file stays until the new one is complete.

    A symbolic link keeps pointing to its file; a pipe or a device is written to directly.

    Raises:
        OSError: it cannot be written; an old file is untouched.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    new = path.with_name(f".{secrets.token_hex(8)}.new")  # short, because a file's own name may be as long as allowed
    try:
        with open(new, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, new)
        rename(new, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or, if it does not exist, in the nearest folder above it that does."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    probe = folder / f".{secrets.token_hex(8)}.new"
    try:
        probe.touch(exist_ok=False)  # asking for the permissions alone does not tell on every system
        probe.unlink()
    except OSError:
        return False
    return True


def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory; on Windows a scanner that has it open for a moment is waited for.

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
