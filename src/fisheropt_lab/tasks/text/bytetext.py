"""One long text made of pieces that need not be in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Piece(Protocol):
    """A run of bytes: a NumPy array, or a span of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> Bytes: ...


@lru_cache(maxsize=64)  # each map holds a file descriptor; a folder may have more files than a process has descriptors
def _map(path: Path) -> Bytes:
    return np.memmap(path, dtype=np.uint8, mode="r")


@dataclass(frozen=True)
class FileSpan:
    """Bytes start..stop of a file, read through a memory map: only the pages that are asked for enter memory."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, where: slice, /) -> Bytes:
        start, stop, _ = where.indices(len(self))
        return _map(self.path)[self.start + start : self.start + stop]


class ByteText:
    """Pieces read as if they stood one after the other."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)  # (pieces,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def window(self, start: int, length: int) -> Bytes:
        """Bytes start..start+length as a new array of shape (length,); the window must lie inside the text."""
        if not 0 <= start <= start + length <= len(self):
            raise IndexError(f"window {start}..{start + length} of a text of {len(self)} bytes")
        out = np.empty(length, np.uint8)
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))  # the piece that holds byte `start`
        while filled < length:
            piece = self._pieces[index]
            offset = start + filled - (int(self._ends[index]) - len(piece))
            part = piece[offset : offset + length - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            index += 1
        return out
