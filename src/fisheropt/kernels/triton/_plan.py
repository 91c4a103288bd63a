"""A model cut into chunks, as a table on the device.

A *chunk* is a fixed number of consecutive elements of one tensor: what one program of a launch works on, in tiles.
Sums are taken per chunk, and one program per tensor adds them up in the order of the chunks, so a result does not
depend on who ran when, nor on what other tensors there are.

The table holds addresses, so it is made anew when a tensor has moved. Where none has, a step only looks up the plan.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fisheropt.kernels.triton._memory import DTYPES

__all__ = ["MARKS", "NUMBERS", "Layout", "Plan", "Tiling", "plans", "shared_out", "supports", "touched", "upload"]


@dataclass(frozen=True)
class Tiling:
    """How much a program works on.

    Attributes:
        chunk: elements per program.
        tile: elements at a time; of them each thread holds a few, all tensors of a rule together.
        rows, columns: of a part of a matrix whose row and column sums a program takes.
        warps: of 32 threads each.
    """

    chunk: int = 16384
    tile: int = 1024
    rows: int = 64
    columns: int = 256
    warps: int = 8


TILING = Tiling()
"""Never seen from outside; the tests make it small."""

_PLANS = 64  # kept: gradients may move between a few places from step to step


@dataclass(frozen=True)
class Layout:
    """What a kernel is compiled for: tensors that agree in it share their launches.

    Attributes:
        device: where they are.
        P, G: the dtypes of parameters and gradients, by their names in a kernel. State is float32.
        ALIGNED: all addresses are multiples of 16, so that a thread may move 16 bytes at once.
    """

    device: torch.device
    P: str
    G: str
    ALIGNED: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """The tensors of one layout.

    Attributes:
        layout: what they have in common.
        shapes: of each.
        tensors: how many there are.
        chunks: how many they are cut into.
        addresses: int64 (rows, tensors): of p, g, step, and each slot that is there.
        sizes: int64 (tensors,): elements of each.
        first: int64 (tensors + 1,): the first chunk of each, and of one more.
        owner: int64 (chunks,): the tensor of each.
        partial: float64 (SUMS, chunks): sums over each.
        numbers: float64 (tensors, NUMBERS): what a step knows about each; the rules say what is where.
        marks: int32 (tensors, MARKS): what a rule remembers about each; 0 at first.
        tiling: the size of a chunk, and of what a program takes at once.
    """

    layout: Layout
    shapes: tuple[torch.Size, ...]
    tensors: int
    chunks: int
    addresses: Tensor
    sizes: Tensor
    first: Tensor
    owner: Tensor
    partial: Tensor
    numbers: Tensor
    marks: Tensor
    tiling: Tiling

    @property
    def by_tensor(self) -> dict[str, Any]:
        """Arguments of a kernel that runs a program per tensor."""
        return {
            "addresses": self.addresses,
            "sizes": self.sizes,
            "first": self.first,
            "numbers": self.numbers,
            "tensors": self.tensors,
            "chunks": self.chunks,
        }

    @property
    def by_chunk(self) -> dict[str, Any]:
        """Arguments of a kernel that runs a program per chunk."""
        return {
            **self.by_tensor,
            "owner": self.owner,
            "P": self.layout.P,
            "G": self.layout.G,
            "ALIGNED": self.layout.ALIGNED,
            "CHUNK": self.tiling.chunk,
            "TILE": self.tiling.tile,
            "num_warps": self.tiling.warps,
        }

    @property
    def by_strip(self) -> dict[str, Any]:
        """Arguments of a kernel that takes or adds up sums by row and column."""
        return {
            "addresses": self.addresses,
            "sizes": self.sizes,
            "tensors": self.tensors,
            "ROWS": self.tiling.rows,
            "COLUMNS": self.tiling.columns,
            "num_warps": self.tiling.warps,
        }

    @property
    def sums(self) -> dict[str, Any]:
        """Arguments of a kernel that takes or adds up sums."""
        return {"partial": self.partial, "marks": self.marks}

    def device(self) -> contextlib.AbstractContextManager[Any]:
        """Launches go to the current device."""
        device = self.layout.device
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


SUMS = 3
NUMBERS = tl.constexpr(8)  # in a row of the table of numbers
MARKS = tl.constexpr(2)


def plans(
    p: Sequence[Tensor], g: Sequence[Tensor], step: Sequence[Tensor], *slots: Sequence[Tensor | None]
) -> Iterator[Plan]:
    """Plans for these tensors, one per layout; those that are empty are left out.

    Raises:
        RuntimeError: a CUDA graph is being captured, and there is no plan for tensors at these addresses.
    """
    rows: dict[Layout, list[tuple[int, ...]]] = defaultdict(list)
    shapes: dict[Layout, list[torch.Size]] = defaultdict(list)
    for tensors in zip(p, g, step, *slots, strict=True):
        x, gradient = tensors[0], tensors[1]
        assert x is not None
        assert gradient is not None
        if x.numel():
            addresses = tuple(0 if t is None else t.data_ptr() for t in tensors)
            aligned = all(
                a % 16 == 0 for i, a in enumerate(addresses) if i != 2
            )  # all but the step, which is one number
            layout = Layout(x.device, DTYPES[x.dtype], DTYPES[gradient.dtype], aligned)
            rows[layout].append(addresses)
            shapes[layout].append(x.shape)
    for layout in rows:
        yield _plan(layout, tuple(rows[layout]), tuple(shapes[layout]), TILING)


@lru_cache(maxsize=_PLANS)
def _plan(layout: Layout, rows: tuple[tuple[int, ...], ...], shapes: tuple[torch.Size, ...], tiling: Tiling) -> Plan:
    if layout.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured, but the tensors of this step are not where they were in the steps before; "
            "take a step outside of the graph first, and keep the gradients in place: zero_grad(set_to_none=False)"
        )
    sizes = [shape.numel() for shape in shapes]
    first, owner = shared_out([-(-size // tiling.chunk) for size in sizes])
    columns = [a for column in zip(*rows, strict=True) for a in column]
    addresses, of_sizes, of_first, of_owner = upload(layout.device, columns, sizes, first, owner)
    return Plan(
        layout,
        shapes,
        len(sizes),
        len(owner),
        addresses,
        of_sizes,
        of_first,
        of_owner,
        partial=torch.zeros(SUMS, len(owner), dtype=torch.float64, device=layout.device),
        numbers=torch.zeros(len(sizes), NUMBERS.value, dtype=torch.float64, device=layout.device),
        marks=torch.zeros(len(sizes), MARKS.value, dtype=torch.int32, device=layout.device),
        tiling=tiling,
    )


def shared_out(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Who works on what, if each of some tensors needs so many programs: the first of each, and the tensor of each."""
    return [0, *accumulate(counts)], [t for t, count in enumerate(counts) for _ in range(count)]


def upload(device: torch.device, *tables: Sequence[int]) -> tuple[Tensor, ...]:
    """The tables on a device, int64, in one copy for which nobody waits but the kernels."""
    together = torch.tensor([x for table in tables for x in table], dtype=torch.int64)
    if device.type == "cuda":
        together = together.pin_memory().to(device, non_blocking=True)
    return torch.split(together, [len(table) for table in tables])


def touched(*rows: Sequence[Tensor | None]) -> None:
    """Tell autograd that these have changed: kernels write behind its back."""
    torch.autograd.graph.increment_version([t for row in rows for t in row if t is not None])


def supports(p: Tensor, g: Tensor, slots: Sequence[Tensor | None], options: Mapping[str, Any]) -> str | None:
    """Why no kernel here takes these tensors, or None."""
    for name, x in (("parameters", p), ("gradients", g)):
        if x.dtype not in DTYPES:
            return f"{name} are {str(x.dtype).removeprefix('torch.')}"
    if any(slot is not None and slot.dtype != torch.float32 for slot in slots):
        return "state is not float32"
    return None
