"""What makes a function one that runs on the device.

Nothing compiles at import: a kernel does at its first call, for the dtypes and the options it meets, and Triton keeps
the result on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

__all__ = ["device", "kernel"]

_NUMBERS = ("tensors", "chunks", "again", "lr", "beta1", "beta2", "epsilon", "eps", "eps2", "clip", "weight_decay")
"""Arguments that are no part of what is compiled: Triton would compile anew for 1, and for multiples of 16."""

device: Callable[..., Any] = triton.jit
"""Decorates a function that kernels call."""


def kernel(function: Callable[..., Any]) -> Any:
    """Decorates a function that is launched."""
    return triton.jit(function, do_not_specialize=_NUMBERS)
