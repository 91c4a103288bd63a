"""How tensors lie in memory, and how to see several of them as flat vectors that walk it together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["flat", "in_layout_of", "is_dense", "same_layout"]


def is_dense(x: Tensor) -> bool:
    """True if the elements fill a piece of memory without holes or overlaps, in any order of the dimensions."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(x: Tensor, y: Tensor) -> bool:
    """True if the dense tensors ``x`` and ``y``, of one shape, have their elements in the same order."""
    return (x.is_contiguous() and y.is_contiguous()) or x.stride() == y.stride()


def flat(x: Tensor) -> Tensor:
    """The elements of ``x`` as a 1-D tensor, in memory order and a view where ``x`` is dense."""
    if x.is_contiguous():
        return x if x.dim() == 1 else x.view(-1)  # a view costs microseconds, and models have thousands of vectors
    return x.as_strided((x.numel(),), (1,)) if is_dense(x) else x.reshape(-1)


def in_layout_of(reference: Tensor, x: Tensor) -> Tensor:
    """``x`` in the memory order of the dense ``reference``, which has its shape; a copy only if needed."""
    return x if same_layout(x, reference) else torch.empty_like(reference, dtype=x.dtype).copy_(x)
