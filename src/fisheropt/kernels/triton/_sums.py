"""Where a program's chunk lies, and sums over whole tensors in an order that is always the same."""

from __future__ import annotations

import triton.language as tl

from fisheropt.kernels.triton._compile import device

__all__ = ["span", "total"]


@device
def span(chunk, owner, first, sizes, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``(tensor, start, stop)``: the elements of a chunk. In 64 bits: a tensor may have more than 2^31."""
    tensor = tl.load(owner + chunk)
    start = (chunk - tl.load(first + tensor)) * CHUNK
    stop = tl.minimum(start + CHUNK, tl.load(sizes + tensor))
    return tensor, start, stop


@device
def total(partial, start, stop):  # type: ignore[no-untyped-def]
    """The sum of ``partial[start:stop]``, float64."""
    BLOCK: tl.constexpr = 512
    lanes = tl.zeros((BLOCK,), tl.float64)
    for block in range(start, stop, BLOCK):
        i = block + tl.arange(0, BLOCK)
        lanes += tl.load(partial + i, i < stop, other=0.0)
    return tl.sum(lanes, axis=0)
