"""Compile loops with numba and keep their machine code on disk for the next process."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps, loads

from charrnn.atomic import write_atomically

OPTIONS = {"error_model": "numpy", "nogil": True, "fastmath": {"nsz", "arcp", "contract", "afn"}}

# whose code and constants are compiled in
PACKAGE = Path(__file__).parents[1]
SOURCES = (
    "kernels/cache",
    "kernels/numba_math",
    "kernels/numba_cells",
    "generation/logits",
    "generation/numba_decoder",
)


def kept(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function: compile it as `njit` does, and keep the machine code on disk for the next process.

    Raises:
        RuntimeError: no folder to keep it in can be written.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(function, **OPTIONS, **options)
        dispatcher._cache = _Cache(function)  # numba's own is keyed by the time of one source file
        return dispatcher

    return decorate


class _Cache(FunctionCache):
    """Numba's cache of a function, in the folder that numba chooses, but with files of our own."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        self._cache_file = _Files(Path(self.cache_path), self._impl.filename_base)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if possible; this process has it in any case, even if the disk is full."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _Files:
    """One file for each signature and processor: a hash, then the machine code.

    The hash covers all sources, so that code compiled from others is not used, and the code, so that a damaged file is
    not used either. Both are compiled again and replaced. Without an index, processes that compile different signatures
    at the same time do not interfere.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name

    def load(self, key: Any) -> Any:
        """What was saved under `key`; None if there is nothing, or nothing to trust."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        return loads(data[32:]) if data[:32] == _digest(data[32:]) else None

    def save(self, key: Any, data: Any) -> None:
        """Write a file whole or not at all."""
        payload = dumps(data)
        write_atomically(self._path(key), _digest(payload) + payload, sync=False)

    def _path(self, key: Any) -> Path:
        signature, processor, (_, closure) = key  # what is left out is a hash of the function: part of its sources
        name = hashlib.sha256(repr((signature, processor, closure)).encode()).hexdigest()[:16]
        return self._folder / f"{self._name}.{name}.nbc"


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(_sources() + payload).digest()


@functools.cache
def _sources() -> bytes:
    """A hash of numba's version and of all source files whose content ends up in machine code."""
    digest = hashlib.sha256(numba.__version__.encode())
    for name in SOURCES:
        digest.update((PACKAGE / f"{name}.py").read_bytes())
    return digest.digest()
