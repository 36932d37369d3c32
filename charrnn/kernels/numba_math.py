"""Arithmetic on fp32 and bf16 numbers for loops that numba compiles, written so that the compiler can vectorise it.

numba has no vector exponential on every machine, so this one is our own: e^x = 2^n e^r with |r| <= ln 2 / 2, and the
Taylor series of e^r up to r^6, whose error is at most 2e-7 of the value. The readable twins are `torch.exp`,
`torch.sigmoid`, `torch.tanh` and `Tensor.bfloat16`.

numpy has no bf16. An array of bf16 numbers is an array of their 16 bits, the upper half of an fp32 number.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from charrnn.kernels.cache import jit

if TYPE_CHECKING:  # PyTorch takes seconds to load, and writing a single text does without it
    from torch import Tensor

Fp32 = NDArray[np.float32]

Array = NDArray[Any]  # of fp32 numbers, or of the bits of bf16 numbers

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

LARGEST = np.float32(80)  # exponents are clipped to ±80: e^80 is near the largest fp32

LOG2_E, LN_2 = np.float32(1 / math.log(2)), np.float32(355 / 512)  # 9 bits, so that n ln 2 is not rounded

LN_2_REST = np.float32(math.log(2) - float(LN_2))

SERIES = tuple(np.float32(1 / math.factorial(order)) for order in range(7))

BF16_SHIFT, BELOW_HALF, LAST_BIT, BF16_NAN = map(np.uint32, (16, 0x7FFF, 1, 0x7FC0))


def as_array(tensor: "Tensor") -> NDArray[Any]:
    """The memory of a CPU tensor as a numpy array; of bf16, the 16 bits."""
    import torch

    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


@jit(inline="always")
def exp(x: np.float32) -> np.float32:
    """e^x, with x clipped to ±80."""
    x = min(max(x, -LARGEST), LARGEST)
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN_2 - n * LN_2_REST
    _, s1, s2, s3, s4, s5, s6 = SERIES
    series: np.float32 = ONE + r * (s1 + r * (s2 + r * (s3 + r * (s4 + r * (s5 + r * s6)))))
    power: np.float32 = np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)  # 2^n
    return series * power


@jit(inline="always")
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


@jit(inline="always")
def tanh(x: np.float32) -> np.float32:
    """(e^2x - 1) / (e^2x + 1)."""
    return ONE - TWO / (ONE + exp(TWO * x))


def read(number: Any) -> Any:
    """An element of an fp32 array, or of the bits of a bf16 array, as fp32."""


@overload(read, inline="always", strict=False)  # lambdas take no annotations
def _read(number: Any) -> Callable[[Any], Any]:
    if isinstance(number, types.Integer):
        return lambda number: np.uint32(np.uint32(number) << BF16_SHIFT).view(np.float32)  # a shift gives 64 bits
    return lambda number: number


@jit()
def _round_to_bf16(number: np.float32) -> np.uint16:
    bits = np.float32(number).view(np.uint32)
    nearest = (bits + BELOW_HALF + ((bits >> BF16_SHIFT) & LAST_BIT)) >> BF16_SHIFT
    return np.uint16(nearest if number == number else BF16_NAN)


def write(array: Array, j: int, number: Any) -> None:
    """Set `array[j]` to an fp32 number; in the bits of a bf16 array it is rounded to nearest, ties to even."""


@overload(write, inline="always")
def _write(array: Any, j: Any, number: Any) -> Callable[..., None]:
    if isinstance(array.dtype, types.Integer):

        def rounded(array: Any, j: Any, number: Any) -> None:
            array[j] = _round_to_bf16(number)

        return rounded

    def exact(array: Any, j: Any, number: Any) -> None:
        array[j] = number

    return exact


@jit()
def copy(source: Array, target: Array) -> None:
    """Copy numbers between arrays of fp32 and bf16."""
    for j in range(len(target)):
        write(target, j, read(source[j]))
