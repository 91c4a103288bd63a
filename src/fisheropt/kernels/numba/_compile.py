"""How code here becomes machine code, and where the machine code is kept.

Nothing compiles at import: each function does at its first call, for the types it meets, and the result is kept on
disk. numba notices when the file of a compiled function changes, but not when a file does whose functions were inlined
into it; so the cache lies in a folder named after the contents of all of them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numba.extending

__all__ = ["elementwise", "exactly", "intrinsic", "overload", "summing"]

_SETTINGS: Any = numba.config


def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _cache_folder() -> str | None:
    """The first place that can be written to, or None: then every process compiles anew."""
    if _SETTINGS.CACHE_DIR:  # NUMBA_CACHE_DIR: the user has said where
        return str(_SETTINGS.CACHE_DIR)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for place in (Path(__file__).parent / "__pycache__", home / "fisheropt"):
        folder = place / f"numba-{_fingerprint()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return str(folder)
    return None


_FOLDER = _cache_folder()


def _compiled(**options: Any) -> Any:
    def decorate(function: Callable[..., Any]) -> Any:
        configured, _SETTINGS.CACHE_DIR = _SETTINGS.CACHE_DIR, _FOLDER or ""
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=_FOLDER is not None, **options)(function)
        finally:
            _SETTINGS.CACHE_DIR = configured

    return decorate


# No flag here lets the compiler assume that there are no NaNs or infinities. A sum may be taken in any order, which is
# what makes it vectorise; the order depends on the code alone, so the bits are the same at every run. `exactly` rounds
# after every operation, as plain PyTorch does.
exactly: Any = _compiled()
elementwise: Any = _compiled(fastmath={"contract"})
summing: Any = _compiled(fastmath={"contract", "reassoc", "nsz"})

intrinsic: Any = numba.extending.intrinsic
overload: Any = partial(
    numba.extending.overload, jit_options={"error_model": "numpy", "fastmath": {"contract"}}, strict=False
)
