"""What the notebooks need beyond the library: figures, baselines, a live plot, widgets, and the size of the work.

The names, listed in `__init__.pyi`, are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
