"""Addresses, the dtypes behind them, prefetching, and what threads say to each other.

A tensor is an address. Its dtype travels as the type of a number: float32 as itself, bfloat16 as uint16 and float16 as
int16, whose bits they are. `load` and `store` widen to float32 and round to nearest even.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from fisheropt.kernels.numba._compile import elementwise, intrinsic

__all__ = [
    "TAGS",
    "add",
    "as_bits",
    "as_float",
    "load",
    "pointer",
    "prefetch",
    "put",
    "read",
    "relax",
    "store",
    "width",
]

TAGS: dict[torch.dtype, Any] = {
    torch.float32: np.float32(0),
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
}
"""dtype -> a number whose type stands for it."""

_LARGEST = {types.uint16: torch.finfo(torch.bfloat16).max, types.int16: torch.finfo(torch.float16).max}
_FLOAT, _HALF, _SHORT, _INT, _LONG = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)

# -- tensors ----------------------------------------------------------------------------------------------------------


@intrinsic
def pointer(context, address, tag):
    """``address`` as a pointer to what ``tag`` stands for."""
    target = types.CPointer(tag)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(types.int64, tag), generate


@intrinsic
def width(context, tag):
    """Bytes of what ``tag`` stands for."""

    def generate(context, builder, signature, arguments):
        return _LONG(tag.bitwidth // 8)

    return types.int64(tag), generate


@intrinsic
def load(context, source, i):
    """Element ``i`` as float32."""
    dtype = source.dtype

    def generate(context, builder, signature, arguments):
        value = builder.load(builder.gep(arguments[0], [arguments[1]]))
        if dtype == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(value, _INT), _INT(16)), _FLOAT)
        if dtype == types.int16:
            return builder.fpext(builder.bitcast(value, _HALF), _FLOAT)
        return value

    return types.float32(source, types.int64), generate


@intrinsic
def store(context, target, i, x):
    """Put the float32 ``x`` into element ``i``: rounded to nearest even, a finite number to a finite one."""
    dtype = target.dtype

    def generate(context, builder, signature, arguments):
        target, i, x = arguments
        if dtype in _LARGEST:
            for sign, beyond in ((1.0, ">"), (-1.0, "<")):
                bound = _FLOAT(sign * _LARGEST[dtype])
                outside = builder.and_(
                    builder.fcmp_ordered(beyond, x, bound), builder.fcmp_ordered("!=", x, _FLOAT(sign * math.inf))
                )
                x = builder.select(outside, bound, x)
        if dtype == types.uint16:
            bits = builder.bitcast(x, _INT)
            odd = builder.and_(builder.lshr(bits, _INT(16)), _INT(1))
            rounded = builder.add(bits, builder.add(odd, _INT(0x7FFF)))
            # a NaN whose payload is in the low half would round to infinity
            bits = builder.select(builder.fcmp_unordered("uno", x, x), _INT(0x7FC00000), rounded)
            x = builder.trunc(builder.lshr(bits, _INT(16)), _SHORT)
        elif dtype == types.int16:
            x = builder.bitcast(builder.fptrunc(x, _HALF), _SHORT)
        builder.store(x, builder.gep(target, [i]))
        return context.get_dummy_value()

    return types.void(target, types.int64, types.float32), generate


@intrinsic
def _fetch(context, address):
    def generate(context, builder, signature, arguments):
        byte = ir.PointerType(ir.IntType(8))
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT]), "llvm.prefetch.p0"
        )
        read, every_level, data = _INT(0), _INT(3), _INT(1)
        builder.call(prefetch, [builder.inttoptr(arguments[0], byte), read, every_level, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


_LINE = 64


@elementwise
def prefetch(address, first, last):
    """Ask for the bytes ``first`` to ``last`` behind ``address``."""
    for byte in range(first, last, _LINE):
        _fetch(address + byte)


@intrinsic
def as_bits(context, x):
    """The bits of a float32 as int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _INT)

    return types.int32(types.float32), generate


@intrinsic
def as_float(context, bits):
    """The float32 that has these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), generate


# -- threads ----------------------------------------------------------------------------------------------------------


def _element(builder: ir.IRBuilder, address: ir.Value, i: ir.Value) -> ir.Value:
    return builder.gep(builder.inttoptr(address, ir.PointerType(_LONG)), [i])


@intrinsic
def add(context, address, i, amount):
    """Add to an int64 that other threads use, and return what it was."""

    def generate(context, builder, signature, arguments):
        address, i, amount = arguments
        return builder.atomic_rmw("add", _element(builder, address, i), amount, "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def read(context, address, i):
    """An int64 that other threads write."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_element(builder, *arguments), "seq_cst", 8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def put(context, address, i, value):
    """Write an int64 that other threads read; they see all that was written before it."""

    def generate(context, builder, signature, arguments):
        address, i, value = arguments
        builder.store_atomic(value, _element(builder, address, i), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def relax(context):
    """Let another thread run: the one waited for may have no core to itself."""

    def generate(context, builder, signature, arguments):
        if os.name == "posix":
            pause = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_INT, []), "sched_yield")
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(), generate
