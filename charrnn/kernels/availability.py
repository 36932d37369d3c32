"""Find out whether compiled code can be used: numba may not be installed, or may fail on this machine."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

fault: str | None = None  # why numba, although installed, is not used in this process


def numba_available() -> bool:
    """Return whether numba is installed and has not failed. It is not loaded here: that takes most of a second."""
    return fault is None and _is_installed()


def why_numba_unavailable() -> str:
    """The reason why `numba_available` is False."""
    return fault or "not installed: pip install numba"


@functools.cache
def _is_installed() -> bool:
    return find_spec("numba") is not None


@contextlib.contextmanager
def disabling_numba_on_failure() -> Iterator[None]:
    """Suppress a failure of the `with` block, which imports or compiles, and do without numba from then on.

    Warns:
        UserWarning: the block failed, with the reason; once per process.
    """
    global fault
    try:
        yield
    except Exception as error:  # a numba older than numpy, a damaged llvmlite, no folder to write to: all differ
        if fault is None:
            reason = next(iter(str(error).strip().splitlines()), "")
            fault = f"{type(error).__name__}: {reason}"
            warnings.warn(
                f"numba cannot be used here, so PyTorch's own layers are, which are slower ({fault}); "
                "update numba and numpy, or set NUMBA_CACHE_DIR to a folder that can be written",
                stacklevel=4,
            )
