"""What every job has to do with tensors and sums."""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels.numba._compile import elementwise
from fisheropt.kernels.numba._memory import TAGS, pointer

__all__ = ["addresses", "load_step", "number", "total", "wrong_dtype"]


def wrong_dtype(p: Tensor, g: Tensor, slots: Sequence[Tensor | None]) -> str | None:
    """Why no kernel here takes tensors of these dtypes, or None."""
    if p.dtype not in TAGS:
        return f"it takes float32, bfloat16 and float16, not {p.dtype}"
    if g.dtype != p.dtype:
        return f"the gradient is {g.dtype}, the parameter {p.dtype}"
    for slot in slots:
        if slot is not None and slot.dtype != torch.float32:
            return f"the state is {slot.dtype}, not float32"
    return None


def number(x: float | Tensor) -> float:
    """``x`` as a float; torch must not see a tensor being read, which on an accelerator would be to wait for it."""
    return float(x.detach().double().numpy().item()) if isinstance(x, Tensor) else float(x)


def addresses(tensors: Sequence[Tensor | None], which: Sequence[int]) -> NDArray[np.int64]:
    """Of these tensors; none if they are None."""
    return np.array([x.data_ptr() for x in (tensors[i] for i in which) if x is not None], np.int64)


@elementwise
def load_step(address):
    """t, from its 0-d int64 tensor."""
    return pointer(address, np.int64(0))[0]


@elementwise
def total(sums, first, last, column):
    """The sum over chunks, in their order."""
    x = 0.0
    for chunk in range(first, last):
        x += sums[chunk, column]
    return x
