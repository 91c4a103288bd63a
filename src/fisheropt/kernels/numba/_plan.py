"""A model cut into pieces that threads can take one after the other.

A *chunk* is at most 32k consecutive elements of one tensor. Sums are taken per chunk and added in the order of the
chunks, so the bits of a result do not depend on who took which. An *item* is what a thread takes at once: a chunk of a
large tensor, or several small tensors whole.

A tensor that fits the cache of a core goes through all phases of its rule in one item. Larger ones form *waves*,
consecutive tensors of some 12 MiB together, and a wave goes through these *stages*:

    GATHER   every chunk: the statistics of the tensor; nothing is changed
    AGAIN    if a tensor's statistics have to be taken anew; as a rule it is skipped
    APPLY    every chunk, the last first, as what was read last is what the cache still has

Only AGAIN and APPLY wait for the stage before them to be finished; a thread that finds nothing left to take goes on
with the next wave.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGAIN", "APPLY", "CHUNK", "GATHER", "WHOLE", "Plan", "plan_for"]

CHUNK = 1 << 15
_LOCAL = 1 << 16  # elements of a tensor that one core keeps: 768 KiB of p, g and f
_WAVE = 1 << 20  # elements between the first and the second look at a number, tensors being smaller

GATHER, AGAIN, APPLY, WHOLE = range(4)

_Integers = NDArray[np.int64]


class Plan(NamedTuple):
    """Arrays of int64, by chunk, by tensor, by item and by stage.

    Attributes:
        tensor, start, stop: the elements of each chunk.
        first_chunk, chunks: the chunks of each tensor.
        item: the first chunk of each item, and at the end the number of chunks.
        kind, first_item, items: of each stage.
    """

    tensor: _Integers
    start: _Integers
    stop: _Integers
    first_chunk: _Integers
    chunks: _Integers
    item: _Integers
    kind: _Integers
    first_item: _Integers
    items: _Integers


@lru_cache(maxsize=1024)
def plan_for(sizes: tuple[int, ...], units: tuple[int, ...] | None = None) -> Plan:
    """The plan for tensors of these numbers of elements.

    Args:
        sizes: number of elements of each tensor.
        units: chunks of each tensor consist of whole units of so many elements (the rows of a matrix).
    """
    chunks: list[tuple[int, ...]] = []
    items: list[int] = []
    stages: list[tuple[int, ...]] = []
    first_chunk, count = [0] * len(sizes), [0] * len(sizes)

    def cut(t: int) -> None:
        unit = units[t] if units else 1
        length = max(unit, CHUNK // unit * unit)
        first_chunk[t] = len(chunks)
        chunks.extend((t, start, min(start + length, sizes[t])) for start in range(0, sizes[t], length))
        count[t] = len(chunks) - first_chunk[t]

    def close_wave(first: int) -> None:
        taken = len(items) - first
        if taken:
            stages.extend(((GATHER, first, taken), (AGAIN, first, taken), (APPLY, first, taken)))

    first_item, wave = 0, 0
    for t, size in enumerate(sizes):
        if size > _LOCAL:
            cut(t)
            items.extend(range(first_chunk[t], len(chunks)))
            wave += size
            if wave >= _WAVE:
                close_wave(first_item)
                first_item, wave = len(items), 0
    close_wave(first_item)

    first_item, gathered = len(items), CHUNK
    for t, size in enumerate(sizes):
        if size <= _LOCAL:
            if gathered >= CHUNK:
                items.append(len(chunks))
                gathered = 0
            cut(t)
            gathered += size
    if len(items) > first_item:
        stages.append((WHOLE, first_item, len(items) - first_item))
    items.append(len(chunks))

    return Plan(
        *_columns(chunks, 3),
        *_columns([*zip(first_chunk, count, strict=True)], 2),
        *_columns([(item,) for item in items], 1),
        *_columns(stages, 3),
    )


def _columns(rows: list[tuple[int, ...]], width: int) -> list[_Integers]:
    return [np.ascontiguousarray(column) for column in np.array(rows, np.int64).reshape(-1, width).T]
