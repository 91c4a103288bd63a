"""How the numbers of a tensor are kept between steps, and how they become float32 and back.

float32, bfloat16 and float16 are read and written element by element (`load`, `store`). Blocks of 8-bit numbers share a
scale, which is known only when all of a block are: they are decoded into room for one run of elements, on which the
rule works, and encoded again from there. The formats and their rounding are those of `fisheropt._storage`, bit for bit.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels import Stored
from fisheropt.kernels.numba._compile import elementwise, exactly, overload
from fisheropt.kernels.numba._memory import TAGS, as_bits, as_float, noise, pointer, prefetch, width

__all__ = ["BLOCK", "Kept", "ahead", "batches", "close", "kept", "open_", "room", "size_of"]

BLOCK = 128
"""Numbers that share a scale; also the elements of a run."""

_ZERO, _ONE = np.float32(0), np.float32(1)


class Kept(NamedTuple):
    """One of the tensors of every parameter: p, or a slot.

    Attributes:
        tag: stands for the dtype (`_memory.TAGS`).
        address: of each; none where the rule keeps no such slot.
        scale: of each, the address of its scales; none but for 8-bit numbers.
        salt: of the noise of stochastic rounding; None: rounded to nearest.
    """

    tag: Any
    address: NDArray[np.int64]
    scale: NDArray[np.int64]
    salt: Any


@elementwise
def ahead(kept, t, first, last):
    """Prefetch elements ``first`` to ``last`` of tensor ``t``."""
    size = width(kept.tag)
    prefetch(kept.address[t], size * first, size * last)


def size_of(x: Tensor | Stored) -> int:
    """Its number of elements."""
    return (x.values if isinstance(x, Stored) else x).numel()


def batches(p: Sequence[Tensor | Stored], *slots: Sequence[Tensor | Stored | None]) -> list[Sequence[int]]:
    """The indices of tensors that are kept alike, each of those to be one `Kept`."""
    forms = list(zip(*map(_forms, (p, *slots)), strict=True))
    if len(set(forms)) == 1:
        return [range(len(forms))]
    found: dict[Any, list[int]] = {}
    for i, form in enumerate(forms):
        found.setdefault(form, []).append(i)
    return list(found.values())


def _forms(xs: Sequence[Tensor | Stored | None]) -> list[Any]:
    return [(x.values.dtype, x.salt) if isinstance(x, Stored) else x if x is None else x.dtype for x in xs]


_NOWHERE = np.empty(0, np.int64)


def kept(tensors: Sequence[Tensor | Stored | None], which: Sequence[int]) -> Kept:
    """These tensors, which have one form."""
    first = tensors[which[0]]
    if first is None:
        return Kept(np.float32(0), _NOWHERE, _NOWHERE, None)
    if isinstance(first, Tensor):
        return Kept(TAGS[first.dtype], np.array([tensors[i].data_ptr() for i in which]), _NOWHERE, None)  # type: ignore[union-attr]
    several: list[Any] = [tensors[i] for i in which]
    scale = _NOWHERE if first.scale is None else np.array([x.scale.data_ptr() for x in several])
    return Kept(TAGS[first.values.dtype], np.array([x.values.data_ptr() for x in several]), scale, np.int64(first.salt))


# -- runs of elements --------------------------------------------------------------------------------------------------


def room(kept: Any) -> Any:
    """Where a run of up to 256 elements is decoded to; nothing where numbers are read as they are."""
    raise NotImplementedError


def open_(kept: Any, t: int, i: int, end: int, room: Any) -> Any:
    """A pointer whose elements ``i`` to ``end`` are those of tensor ``t``, to read with `load`."""
    raise NotImplementedError


def close(kept: Any, t: int, i: int, end: int, room: Any, key: Any) -> None:
    """Keep what has been written there. A run is whole blocks, or ends with the tensor."""
    raise NotImplementedError


def _is_blocks(kept: Any) -> bool:
    return kept.types[0] in (types.int8, types.uint8)


@overload(room)
def _room(kept):
    if _is_blocks(kept):
        return lambda kept: np.empty(2 * BLOCK, np.float32)
    return lambda kept: None


@overload(open_)
def _open(kept, t, i, end, room):
    if _is_blocks(kept):

        def decoded(kept, t, i, end, room):
            there = pointer(np.int64(room.ctypes.data) - 4 * i, _ZERO)
            codes, scale = pointer(kept.address[t], kept.tag), pointer(kept.scale[t], _ZERO)
            for first in range(i, end, BLOCK):  # blocks begin at multiples of their length
                decode(codes, there, first, min(first + BLOCK, end), scale[first // BLOCK])
            return there

        return decoded
    return lambda kept, t, i, end, room: pointer(kept.address[t] if kept.address.size > 0 else 0, kept.tag)


@overload(close)
def _close(kept, t, i, end, room, key):
    if _is_blocks(kept):

        def encoded(kept, t, i, end, room, key):
            there = pointer(np.int64(room.ctypes.data) - 4 * i, _ZERO)
            codes, scale = pointer(kept.address[t], kept.tag), pointer(kept.scale[t], _ZERO)
            for first in range(i, end, BLOCK):
                last = min(first + BLOCK, end)
                scale[first // BLOCK] = largest = magnitude(there, first, last)
                encode(codes, there, first, last, largest, key)

        return encoded
    return lambda kept, t, i, end, room, key: None


@elementwise
def magnitude(x, i, end):
    """The largest of |x|; NaN if there is one among them: as integers, the bits of floats are in their order."""
    largest = np.int32(0)
    for j in range(i, end):
        size = np.int32(as_bits(x[j]) & np.int32(0x7FFFFFFF))
        largest = size if size > largest else largest
    return as_float(largest)


def decode(codes: Any, x: Any, i: int, end: int, scale: Any) -> None:
    """One block of codes as numbers."""
    raise NotImplementedError


def encode(codes: Any, x: Any, i: int, end: int, scale: Any, key: Any) -> None:
    """One block of numbers as codes, of which the largest stands for ``scale``."""
    raise NotImplementedError


_UNIT7, _UNIT8 = np.float32(1 / 127), np.float32(1 / 255)
_CODES7, _CODES8 = np.float32(127), np.float32(255)
_FRACTION = np.float32(2.0**-24)


@exactly
def _decode_signed(codes, x, i, end, scale):
    for j in range(i, end):
        x[j] = np.float32(codes[j]) * _UNIT7 * scale


@exactly
def _decode_companded(codes, x, i, end, scale):
    for j in range(i, end):
        unit = np.float32(codes[j]) * _UNIT8
        x[j] = unit * unit * scale


@elementwise
def fraction(i, key):
    """A random number in [0, 1)."""
    return np.float32(np.int32(noise(i, key) >> 8) & np.int32(0xFFFFFF)) * _FRACTION


@exactly
def _encode_signed(codes, x, i, end, scale, key):
    of_all = scale if scale != _ZERO else _ONE
    for j in range(i, end):
        code = np.int32(np.floor(x[j] / of_all * _CODES7 + fraction(j, key)))
        code = np.int32(127) if code > np.int32(127) else code
        codes[j] = np.int8(np.int32(-127) if code < np.int32(-127) else code)


@exactly
def _encode_companded(codes, x, i, end, scale, key):
    of_all = scale if scale != _ZERO else _ONE
    for j in range(i, end):
        code = np.int32(np.floor(np.float32(math.sqrt(x[j] / of_all)) * _CODES8 + fraction(j, key)))
        code = np.int32(255) if code > np.int32(255) else code
        codes[j] = np.uint8(np.int32(1) if code < np.int32(1) and x[j] > _ZERO else code)


@overload(decode)
def _decode(codes, x, i, end, scale):
    if codes.dtype == types.int8:
        return lambda codes, x, i, end, scale: _decode_signed(codes, x, i, end, scale)
    return lambda codes, x, i, end, scale: _decode_companded(codes, x, i, end, scale)


@overload(encode)
def _encode(codes, x, i, end, scale, key):
    if codes.dtype == types.int8:
        return lambda codes, x, i, end, scale, key: _encode_signed(codes, x, i, end, scale, key)
    return lambda codes, x, i, end, scale, key: _encode_companded(codes, x, i, end, scale, key)
