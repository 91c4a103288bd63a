"""Tensors as addresses, and the dtypes behind them.

A kernel reads the addresses of its tensors from a table, so Triton is told by name what lies behind them. Everything
is float32 between `load` and `store`. bfloat16 goes through its bits, the upper half of those of a float32: the same
instructions wherever the kernel runs.
"""

from __future__ import annotations

import torch
import triton.language as tl

from fisheropt.kernels.triton._compile import device

__all__ = ["DTYPES", "load", "store"]

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""What kernels can take -> its name in a kernel."""

_LARGEST_BFLOAT16 = tl.constexpr(torch.finfo(torch.bfloat16).max)
_LARGEST_FLOAT16 = tl.constexpr(torch.finfo(torch.float16).max)


@device
def _pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    if DTYPE == "bfloat16":
        pointer = address.to(tl.pointer_type(tl.uint16))
    elif DTYPE == "float16":
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@device
def load(address, i, stop, FULL: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements ``i`` as float32, 0 from ``stop`` on.

    FULL: none is beyond ``stop``. ALIGNED: the address is a multiple of 16. With both, a thread loads 16 bytes at once.
    """
    pointer = _pointer(address, DTYPE, ALIGNED) + i
    if FULL:
        x = tl.load(pointer)
    else:
        x = tl.load(pointer, i < stop, other=0)
    if DTYPE == "bfloat16":
        x = (x.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@device
def store(address, i, stop, x, FULL: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Put the float32 ``x`` into elements ``i``: rounded to nearest even, saturating at the largest number."""
    pointer = _pointer(address, DTYPE, ALIGNED) + i
    if DTYPE == "bfloat16":
        x = tl.where(tl.abs(x) > _LARGEST_BFLOAT16, tl.where(x > 0, _LARGEST_BFLOAT16, -_LARGEST_BFLOAT16), x)
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # a NaN whose payload is in the lower half would become infinite
        x = tl.where(x == x, rounded, 0x7FC0).to(tl.uint16)
    elif DTYPE == "float16":
        x = tl.where(tl.abs(x) > _LARGEST_FLOAT16, tl.where(x > 0, _LARGEST_FLOAT16, -_LARGEST_FLOAT16), x)
        x = x.to(tl.float16)
    if FULL:
        tl.store(pointer, x)
    else:
        tl.store(pointer, x, i < stop)
