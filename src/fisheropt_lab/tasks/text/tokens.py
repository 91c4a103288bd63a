"""One long text made of pieces that need not be in memory: bytes, or the tokens of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[Any]  # of an unsigned integer type


class Piece(Protocol):
    """A run of tokens: a NumPy array, or a span of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> Tokens: ...


@lru_cache(maxsize=64)  # each map holds a file descriptor; a folder may have more files than a process has descriptors
def _map(path: Path, dtype: str) -> Tokens:
    return np.memmap(path, dtype=dtype, mode="r")


@dataclass(frozen=True)
class FileSpan:
    """Tokens start..stop of a file, read through a memory map: only the pages that are asked for enter memory."""

    path: Path
    start: int
    stop: int
    dtype: str = "uint8"

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, where: slice, /) -> Tokens:
        start, stop, _ = where.indices(len(self))
        return _map(self.path, self.dtype)[self.start + start : self.start + stop]


class TokenText:
    """Pieces read as if they stood one after the other."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)]
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)  # (pieces,)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def window(self, start: int, length: int) -> Tokens:
        """Tokens start..start+length as a new array of shape (length,); the window must lie inside the text."""
        if not 0 <= start <= start + length <= len(self):
            raise IndexError(f"window {start}..{start + length} of a text of {len(self)} tokens")
        out = np.empty(length, self._pieces[0][0:1].dtype if self._pieces else np.uint8)
        filled = 0
        index = int(np.searchsorted(self._ends, start, side="right"))  # the piece that holds token `start`
        while filled < length:
            piece = self._pieces[index]
            offset = start + filled - (int(self._ends[index]) - len(piece))
            part = piece[offset : offset + length - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            index += 1
        return out
