"""e^x, sigmoid and tanh of fp32 numbers inside loops that numba compiles, where the compiler can make vectors of them.

The exponential is our own, for numba has no vector one everywhere: e^x = 2^n e^r with |r| <= ln 2 / 2, and Taylor's
series of e^r to the sixth order, 2e-7 of the value at most.
"""

import math
import threading

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from charrnn.kernels.cache import OPTIONS

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)

LARGEST = np.float32(80)  # the exponent is held between -80 and 80: e^80 is near the largest fp32

LOG2_E, LN_2 = np.float32(1 / math.log(2)), np.float32(355 / 512)  # of 9 bits, so that n ln 2 is not rounded

LN_2_REST = np.float32(math.log(2) - float(LN_2))

SERIES = tuple(np.float32(1 / math.factorial(order)) for order in range(7))

BITS_CUT, HALF_OF_BF16, LAST, NO_NUMBER = map(np.uint32, (16, 0x7FFF, 1, 0x7FC0))  # fp32 to bf16

ALONE = threading.Lock()  # one of numba's ways to use many cores ends the process if two threads come at once


@intrinsic
def bits_to_float(context, bits):
    """The fp32 number whose 32 bits these are."""
    return types.float32(types.uint32), lambda _, builder, __, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic
def float_to_bits(context, number):
    """The 32 bits of an fp32 number."""
    return types.uint32(types.float32), lambda _, builder, __, values: builder.bitcast(values[0], ir.IntType(32))


@njit(inline="always", **OPTIONS)
def exp(x):
    """e^x, for x held between -80 and 80."""
    x = min(max(x, -LARGEST), LARGEST)
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN_2 - n * LN_2_REST
    _, s1, s2, s3, s4, s5, s6 = SERIES
    series = ONE + r * (s1 + r * (s2 + r * (s3 + r * (s4 + r * (s5 + r * s6)))))
    return series * bits_to_float(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))  # times 2^n


@njit(inline="always", **OPTIONS)
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


@njit(inline="always", **OPTIONS)
def tanh(x):
    """(e^2x - 1) / (e^2x + 1)."""
    return ONE - TWO / (ONE + exp(TWO * x))


def copy(source, target):
    """Copy numbers between arrays of fp32 and of the 16 bits of bf16, rounded to the nearest and half to even."""
    raise NotImplementedError("inside compiled code only")


@overload(copy)
def _copy(source, target):
    if source.dtype == target.dtype:

        def copy(source, target):
            for j in range(len(target)):
                target[j] = source[j]

    elif target.dtype == types.uint16:

        def copy(source, target):
            for j in range(len(target)):
                bits = float_to_bits(source[j])
                rounded = (bits + HALF_OF_BF16 + (bits >> BITS_CUT & LAST)) >> BITS_CUT
                target[j] = rounded if source[j] == source[j] else NO_NUMBER

    else:

        def copy(source, target):
            for j in range(len(target)):
                target[j] = bits_to_float(np.uint32(source[j]) << BITS_CUT)

    return copy
