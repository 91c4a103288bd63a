"""f^rho, scalars that depend on the step, and what to do at the edges of float32.

Two ways through the same mathematics. The *fast* one is float32 and vectorised. The *careful* one is float64, where no
number a float32 tensor can hold leaves the range; it is taken where the fast one could, which is decided from
statistics and hyper-parameters alone.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fisheropt.kernels.numba._compile import elementwise, overload
from fisheropt.kernels.numba._memory import as_bits, as_float

__all__ = [
    "LARGEST",
    "SMALL",
    "Identity",
    "Power",
    "SquareRoot",
    "debiased",
    "exponent",
    "limited",
    "raised",
    "rms",
    "shrink",
]

LARGEST = np.float32(np.finfo(np.float32).max)
SMALL = 1e-30  # the reciprocal of a metric above it, and its product with a clip factor above it, are in range


class SquareRoot(NamedTuple):
    """rho = 1/2."""

    rho: float


class Identity(NamedTuple):
    """rho = 1."""

    rho: float


class Power(NamedTuple):
    """Any rho < 1, as a sum of three: ``high`` has so few bits that its product with an integer is exact."""

    rho: float
    high: np.float32
    low: np.float32


def exponent(rho: float) -> SquareRoot | Identity | Power:
    """``rho`` as a type that compiled code is specialised for."""
    if rho == 0.5:
        return SquareRoot(rho)
    if rho == 1.0:
        return Identity(rho)
    high = np.float32(round(rho * 4096) / 4096)
    return Power(rho, high, np.float32(rho - float(high)))


def raised(f: Any, rho: Any) -> Any:
    """``f^rho`` in float32, for f >= 0 in float32; NaN stays NaN."""
    raise NotImplementedError


_TWO_24 = np.float32(2**24)
_TINY = np.float32(np.finfo(np.float32).tiny)
_SHIFT, _SHIFT_BITS = np.float32(1.5 * 2**23), np.int32(0x4B400000)
_ZERO, _ONE = np.float32(0), np.float32(1)
_ROOT_HALF_BITS = np.int32(0x3F3504F3)
_LOG = tuple(np.float32(2 / ((2 * k + 1) * math.log(2))) for k in range(5))
_EXP = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))


@elementwise
def _power(f, rho, high, low):
    """2^(rho log2 f), to two units in the last place; a result below 1e-38 may come out as 1e-38.

    f = 2^n (1 + s)/(1 - s) with |s| < 0.172; the series of log2 is cut after s^9, that of 2^r, |r| <= 1/2, after r^7.
    """
    denormal = f < _TINY
    bits = as_bits(f * _TWO_24 if denormal else f)
    n = np.int32(np.int32(bits - _ROOT_HALF_BITS) >> 23)  # numba would go on in int64
    x = as_float(np.int32(bits - np.int32(n << 23)))
    s = (x - _ONE) / (x + _ONE)
    s2 = s * s
    log = s * (_LOG[0] + s2 * (_LOG[1] + s2 * (_LOG[2] + s2 * (_LOG[3] + s2 * _LOG[4]))))
    n = np.int32(n - 24) if denormal else n
    whole = high * np.float32(n)  # exact
    rest = low * np.float32(n) + np.float32(rho) * log
    shifted = (whole + rest) + _SHIFT  # its last bits are the nearest integer
    k = np.int32(as_bits(shifted) - _SHIFT_BITS)
    r = (whole - (shifted - _SHIFT)) + rest
    y = _EXP[4] + r * (_EXP[5] + r * (_EXP[6] + r * _EXP[7]))
    y = _EXP[0] + r * (_EXP[1] + r * (_EXP[2] + r * (_EXP[3] + r * y)))
    k = np.int32(-126) if k < np.int32(-126) else k
    y = as_float(np.int32(as_bits(y) + np.int32(k << 23)))
    return y if f > _ZERO else f


@overload(raised)
def _raised(f, rho):
    if rho.instance_class is SquareRoot:
        return lambda f, rho: np.float32(math.sqrt(f))
    if rho.instance_class is Identity:
        return lambda f, rho: f
    return lambda f, rho: _power(f, rho.rho, rho.high, rho.low)


@elementwise
def debiased(beta2, t):
    """(b2hat, 1 - b2hat), in float64 (SPEC D4b).                                                            line 6"""
    correction = 1.0 - beta2**t
    return beta2 * (1.0 - beta2 ** (t - 1)) / correction, (1.0 - beta2) / correction


@elementwise
def limited(x, bound):
    """``x`` between -bound and bound; NaN stays NaN."""
    x = bound if x > bound else x
    return -bound if x < -bound else x


@elementwise
def rms(sum_of_squares, elements):
    """sqrt(mean)."""
    return math.sqrt(sum_of_squares / elements)


@elementwise
def shrink(rms, clip):
    """1 / max(1, rms/c), and NaN for a NaN, which a max() might hide.                                lines 10 and 13"""
    excess = rms / clip
    return 1.0 if excess <= 1.0 else 1.0 / excess
