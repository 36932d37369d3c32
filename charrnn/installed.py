"""What is installed beside what the library requires."""

import functools
from importlib.util import find_spec


@functools.cache
def has_numba() -> bool:
    """Whether numba is there; to load it takes most of a second, so that is left to who needs it."""
    return find_spec("numba") is not None
