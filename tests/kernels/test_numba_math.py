"""The functions that compiled loops are made of, against numpy in double precision."""

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from numba import njit

from charrnn.kernels.numba_math import exp, sigmoid, tanh


def test_they_are_as_exact_as_fp32():
    """To 3 units in the last place of the value; of tanh, which is a difference from 1, to those of 1."""

    @njit
    def fill(x, powers, sigmoids, tanhs):
        for j in range(len(x)):
            powers[j], sigmoids[j], tanhs[j] = exp(x[j]), sigmoid(x[j]), tanh(x[j])

    x = np.concatenate([np.linspace(-80, 80, 20_001), np.linspace(-1, 1, 2_001), [-300, 300]]).astype(np.float32)
    powers, sigmoids, tanhs = (np.empty_like(x) for _ in range(3))
    fill(x, powers, sigmoids, tanhs)
    held, unit = np.clip(x.astype(np.float64), -80, 80), 2.0**-23
    np.testing.assert_allclose(powers, np.exp(held), rtol=3 * unit)
    np.testing.assert_allclose(sigmoids, 1 / (1 + np.exp(-held)), rtol=3 * unit)
    np.testing.assert_allclose(tanhs, np.tanh(held), atol=3 * unit, rtol=0)
