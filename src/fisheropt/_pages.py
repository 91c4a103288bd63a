"""Large pages of memory under large tensors on the CPU.

A step reads and writes several tensors from end to end. In pages of 4 KiB the processor looks up where a page lies for
every thousand numbers of each, and its prefetchers stop at every border; in pages of 2 MiB both hardly happen. Linux
gives them to memory that has not been touched yet, if asked (and if its administrator allows: ``madvise`` or ``always``
in ``/sys/kernel/mm/transparent_hugepage/enabled``).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

from torch import Tensor

__all__ = ["in_large_pages"]

_LARGE = 1 << 21


@cache
def _madvise() -> Any:
    """The C library's function, or None where there is none, or no large pages."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def in_large_pages(x: Tensor) -> Tensor:
    """``x``, which nobody has written to yet; a tensor that is too small for it, or elsewhere, is left alone."""
    has_memory = type(x) is Tensor and x.device.type == "cpu"
    if has_memory and x.nbytes >= 2 * _LARGE and (madvise := _madvise()) is not None:
        start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (x.data_ptr() + x.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(start, whole, mmap.MADV_HUGEPAGE)  # advice only: if the system declines, the pages are small
    return x
