"""Addresses, the dtypes behind them, prefetching, and what threads say to each other.

A tensor is an address. Its dtype travels as the type of a number: float32 as itself, bfloat16 as uint16 and float16 as
int16, whose bits they are. `load` and `store` widen to float32 and round, to nearest even or stochastically.
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
    "keep",
    "key_of",
    "load",
    "noise",
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
    torch.int8: np.int8(0),
    torch.uint8: np.uint8(0),
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


def _mixed(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """`fisheropt._rounding._mix` of 32 bits."""
    x = builder.mul(builder.xor(x, builder.lshr(x, _INT(16))), _INT(0x7FEB352D))
    x = builder.mul(builder.xor(x, builder.lshr(x, _INT(15))), _INT(0x846CA68B))
    return builder.xor(x, builder.lshr(x, _INT(16)))


@intrinsic
def key_of(context, salt, step):
    """The key of the noise of a step (`fisheropt._rounding.noise`); None without a salt."""
    if salt == types.none:
        return types.none(salt, step), lambda context, builder, signature, arguments: context.get_dummy_value()

    def generate(context, builder, signature, arguments):
        return _mixed(builder, builder.trunc(builder.add(*arguments), _INT))

    return types.uint32(types.int64, types.int64), generate


@intrinsic
def noise(context, i, key):
    """32 random bits for element ``i``, as int32."""

    def generate(context, builder, signature, arguments):
        return _mixed(builder, builder.xor(builder.trunc(arguments[0], _INT), arguments[1]))

    return types.int32(types.int64, types.uint32), generate


def _round_into(builder: ir.IRBuilder, dtype: Any, target: ir.Value, i: ir.Value, x: ir.Value, key: Any) -> None:
    """A finite number stays finite. ``key``: None for rounding to nearest even."""
    if dtype in _LARGEST:
        for sign, beyond in ((1.0, ">"), (-1.0, "<")):
            bound = _FLOAT(sign * _LARGEST[dtype])
            outside = builder.fcmp_ordered(beyond, x, bound)
            if key is None:
                outside = builder.and_(outside, builder.fcmp_ordered("!=", x, _FLOAT(sign * math.inf)))
            x = builder.select(outside, bound, x)
    if dtype == types.uint16:
        bits = builder.bitcast(x, _INT)
        if key is None:
            odd = builder.and_(builder.lshr(bits, _INT(16)), _INT(1))
            rounded = builder.add(bits, builder.add(odd, _INT(0x7FFF)))
        else:
            random = _mixed(builder, builder.xor(builder.trunc(i, _INT), key))
            rounded = builder.add(bits, builder.lshr(random, _INT(16)))
        # a NaN whose payload is in the low half would round to infinity
        bits = builder.select(builder.fcmp_unordered("uno", x, x), _INT(0x7FC00000), rounded)
        x = builder.trunc(builder.lshr(bits, _INT(16)), _SHORT)
    elif dtype == types.int16:
        x = builder.bitcast(builder.fptrunc(x, _HALF), _SHORT)
    builder.store(x, builder.gep(target, [i]))


@intrinsic
def store(context, target, i, x):
    """Put the float32 ``x`` into element ``i``, rounded to nearest even."""

    def generate(context, builder, signature, arguments):
        target, i, x = arguments
        _round_into(builder, signature.args[0].dtype, target, i, x, None)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.float32), generate


@intrinsic
def keep(context, target, i, x, key):
    """`store` if ``key`` is None; else rounded stochastically, as `fisheropt._rounding.round_to_bfloat16` does."""

    def generate(context, builder, signature, arguments):
        target, i, x, noise = arguments
        _round_into(builder, signature.args[0].dtype, target, i, x, None if key == types.none else noise)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.float32, key), generate


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
