"""Character-level recurrent language models: a course in notebooks, and the library behind it.

The names, listed in `__init__.pyi`, are imported when they are first used: PyTorch takes seconds to load, and the
command line and a single text do without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
