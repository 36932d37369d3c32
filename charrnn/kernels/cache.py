"""Compile loops with numba and keep their machine code on disk for the next process."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps, loads

from charrnn.atomic import write_atomically

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": {"nsz", "arcp", "contract", "afn"}}

# the modules whose code and constants are compiled in
PACKAGE = Path(__file__).parents[1]
SOURCES = (
    "kernels/cache",
    "kernels/numba_math",
    "kernels/numba_cells",
    "generation/logits",
    "generation/numba_decoder",
)

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(**options: Any) -> Callable[[Function], Function]:
    """Compile a function with the options that all of our loops share; it is compiled anew in each process."""
    return lambda function: njit(function, **OPTIONS, **options)


def cached_jit(**options: Any) -> Callable[[Function], Function]:
    """Compile a function as `jit` does, and keep the machine code on disk for the next process.

    Raises:
        RuntimeError: there is no folder to keep it in that can be written.
    """

    def decorate(function: Function) -> Function:
        dispatcher: Any = jit(**options)(function)
        dispatcher._cache = _Cache(function)  # numba's own is keyed by the time of one source file
        return dispatcher  # type: ignore[no-any-return]

    return decorate


class _Cache(FunctionCache):
    """Numba's cache of a function, in the folder that numba chooses, but with files of our own."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)  # type: ignore[no-untyped-call]
        self._cache_file: Any = _Files(Path(self.cache_path), self._impl.filename_base)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the machine code if possible; if the disk is full, the next process compiles again."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


class _Files:
    """One file for each signature and processor: a hash, then the machine code.

    The hash covers all sources and the code. A file that is damaged, or was compiled from other sources, is compiled
    again and replaced. Without an index, processes that compile different signatures do not interfere.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name

    def load(self, key: Any) -> Any:
        """The machine code saved under `key`; None if there is none, or none to trust."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        return loads(data[32:]) if data[:32] == _digest(data[32:]) else None

    def save(self, key: Any, data: Any) -> None:
        """Write a file whole or not at all."""
        payload = dumps(data)  # type: ignore[no-untyped-call]
        write_atomically(self._path(key), _digest(payload) + payload, sync=False)

    def _path(self, key: Any) -> Path:
        signature, processor, (_, closure) = key  # the rest is a hash of the function, which is part of its sources
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
