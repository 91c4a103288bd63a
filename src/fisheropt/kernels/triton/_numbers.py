"""Arithmetic that stays finite and hides no NaN: `fisheropt._math` for kernels.

Comparisons with a NaN are false, so every bound here is written as a choice that then leaves the NaN where it is; the
minimum and maximum of the language would drop it. Divisions and square roots are those of IEEE 754: the faster
approximations flush small numbers to zero, and a step waits for memory anyway.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton._compile import device

__all__ = [
    "argument",
    "as_bits",
    "bias_correction",
    "clip_scale",
    "exponent",
    "number",
    "power",
    "power_of_number",
    "quotient",
    "root_mean",
    "saturated",
    "square",
    "wide",
]

_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_CEILING = tl.constexpr(torch.finfo(torch.float32).max / 2)  # as in `fisheropt._math`: where squares and sums saturate

# -- numbers on their way to a kernel ---------------------------------------------------------------------------------


def as_bits(x: float) -> int:
    """A float64 as an integer: Triton would hand a Python number to a kernel in float32, and lose 1 - beta2."""
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def argument(x: float | Tensor, device: torch.device) -> int | Tensor:
    """What a kernel is given for ``x``: the tensor itself, if it is where the kernel can read it, or `as_bits`."""
    return x if isinstance(x, Tensor) and x.device == device else as_bits(float(x))


@device
def wide(x):  # type: ignore[no-untyped-def]
    """The float64 that an `argument` stands for, or that is in the table of the plan."""
    if x.dtype.is_ptr():
        y = tl.load(x).to(tl.float64)
    else:
        y = x.to(tl.int64).to(tl.float64, bitcast=True)
    return y


@device
def number(x):  # type: ignore[no-untyped-def]
    """The same in float32."""
    return wide(x).to(tl.float32)


def exponent(rho: float) -> dict[str, Any]:
    """``rho`` as `power` wants it: with a part of it that has so few bits that its product with an int8 is exact."""
    mantissa, e = math.frexp(rho)
    return {"RHO": rho, "RHO_HIGH": math.ldexp(round(math.ldexp(mantissa, 14)), e - 14)}


# -- elementwise, float32 ---------------------------------------------------------------------------------------------


@device
def saturated(x):  # type: ignore[no-untyped-def]
    """A square or a sum of squares, at most half the largest number."""
    return tl.where(x > _CEILING, _CEILING, x)


@device
def square(x):  # type: ignore[no-untyped-def]
    """``x^2``, saturating."""
    return saturated(x * x)


@device
def quotient(x, d):  # type: ignore[no-untyped-def]
    """``x / d`` for ``d >= 0``: 0 where d is 0 (SPEC D5), saturating."""
    y = tl.div_rn(x, tl.where(d == 0.0, float("inf"), d))
    return tl.where(tl.abs(y) > _LARGEST, tl.where(y > 0.0, _LARGEST, -_LARGEST), y)


@device
def power(x, RHO: tl.constexpr, RHO_HIGH: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x^rho`` for ``x >= 0`` to about one unit in the last place, saturating.

    Written out, as exp2(rho log2(x)) of the hardware loses the bits that log2(x) needs for its exponent:
    x = 2^e m with m around 1, so log2(x) = e + log2(m), of which rho e is exact up to a small rest.
    """
    if RHO == 0.5:
        y = tl.sqrt_rn(x)
    elif RHO == 1.0:
        y = x
    else:
        RHO_LOW: tl.constexpr = RHO - RHO_HIGH
        subnormal = x < 1.1754943508222875e-38
        bits = tl.where(subnormal, x * 16777216.0, x).to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23  # m in [sqrt(1/2), sqrt(2))
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        e = (exponent - tl.where(subnormal, 24, 0)).to(tl.float32)

        s = tl.div_rn(m - 1.0, m + 1.0)  # log2(m) = 2/ln 2 (s + s^3/3 + s^5/5 + ...)
        s2 = s * s
        log2m = 0.57707801635559 + s2 * (0.41219858311113 + s2 * 0.32059889797533)
        log2m = s * (2.8853900817779 + s2 * (0.96179669392598 + s2 * log2m))

        whole = RHO_HIGH * e
        n = tl.floor(whole + RHO * log2m + 0.5)
        n = tl.where(n < -252.0, -252.0, tl.where(n > 252.0, 252.0, n))
        r = (whole - n) + (RHO_LOW * e + RHO * log2m)  # 2^r = 1 + r ln 2 + (r ln 2)^2/2! + ...
        y = 0.001333355814643 + r * (0.00015403530393382 + r * 1.5252733804060e-05)
        y = 0.24022650695910 + r * (0.055504108664822 + r * (0.0096181291076285 + r * y))
        y = 1.0 + r * (0.69314718055995 + r * y)

        half = n.to(tl.int32) >> 1  # 2^n in two factors, as either alone is in range
        rest = n.to(tl.int32) - half
        y = y * ((half + 127) << 23).to(tl.float32, bitcast=True) * ((rest + 127) << 23).to(tl.float32, bitcast=True)
        y = tl.where(y > _LARGEST, _LARGEST, y)
        y = tl.where(x == 0.0, 0.0, tl.where(x < float("inf"), y, x))
    return y


# -- scalars, float64 -------------------------------------------------------------------------------------------------


@device
def _integer_power(x, n):  # type: ignore[no-untyped-def]
    """``x^n`` for ``n >= 0`` by repeated squaring: exactly 1 and x at n = 0 and 1, where SPEC D4b needs it."""
    y = x * 0.0 + 1.0
    while n > 0:
        y = tl.where(n % 2 == 1, y * x, y)
        x = x * x
        n = n // 2
    return y


@device
def bias_correction(beta, step):  # type: ignore[no-untyped-def]
    """``1 - beta^t``."""
    return 1.0 - _integer_power(beta, step)


@device
def power_of_number(x, e: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x^e`` for ``x >= 0``."""
    if e == 1.0:
        y = x
    else:
        y = tl.where(x == 0.0, 0.0, tl.exp2(e * tl.log2(tl.where(x == 0.0, 1.0, x))))
    return y


@device
def clip_scale(total, count, c):  # type: ignore[no-untyped-def]
    """``max(1, rms/c)`` from a sum of squares. A NaN stays one, and an infinity, which only one in the input makes,
    becomes one: eager code has inf/inf there."""
    ratio = root_mean(total, count) / c
    return tl.where(ratio < 1.0, 1.0, ratio)


@device
def root_mean(total, count):  # type: ignore[no-untyped-def]
    """The root mean square from the sum of squares."""
    mean = total / count
    return tl.sqrt(tl.where(mean == float("inf"), float("nan"), mean))
