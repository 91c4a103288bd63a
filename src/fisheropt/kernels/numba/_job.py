"""What every job has to do with tensors and sums."""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels import Stored
from fisheropt.kernels.numba._compile import elementwise
from fisheropt.kernels.numba._kept import BLOCK
from fisheropt.kernels.numba._memory import pointer

__all__ = ["addresses", "declined", "load_step", "number", "total", "touched", "wrong_dtype"]

_WEIGHTS = (torch.float32, torch.bfloat16, torch.float16)


def wrong_dtype(p: Tensor, g: Tensor, slots: Sequence[Tensor | None]) -> str | None:
    """`declined` for a kernel whose state is in float32."""
    return declined(p, g, slots)


def declined(
    p: Tensor | Stored, g: Tensor, slots: Sequence[Tensor | Stored | None], blocks_of: int | None = BLOCK
) -> str | None:
    """Why no kernel here takes tensors that are kept like this, or None.

    ``blocks_of``: elements that 8-bit state has per scale; None where it is not taken.
    """
    x = p.values if isinstance(p, Stored) else p
    if x.dtype not in _WEIGHTS:
        return f"it takes float32, bfloat16 and float16, not {x.dtype}"
    if g.dtype != x.dtype:
        return f"the gradient is {g.dtype}, the parameter {x.dtype}"
    for slot in slots:
        if isinstance(slot, Stored):
            if slot.scale is not None and slot.block != blocks_of:
                return "it takes no 8-bit state"
        elif slot is not None and slot.dtype != torch.float32:
            return f"the state is {slot.dtype}, not float32"
    return None


def number(x: float | Tensor) -> float:
    """``x`` as a float; torch must not see a tensor being read, which on an accelerator would be to wait for it."""
    return float(x.detach().double().numpy().item()) if isinstance(x, Tensor) else float(x)


def addresses(tensors: Sequence[Tensor | None], which: Sequence[int]) -> NDArray[np.int64]:
    """Of these tensors; none if they are None."""
    return np.array([x.data_ptr() for x in (tensors[i] for i in which) if x is not None], np.int64)


def touched(p: Sequence[Tensor | Stored]) -> None:
    """Autograd is to notice that these have changed."""
    torch.autograd.graph.increment_version([x.values if isinstance(x, Stored) else x for x in p])


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
