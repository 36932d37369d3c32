"""Names for array types that several modules use."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

Tokens = NDArray[np.integer]
