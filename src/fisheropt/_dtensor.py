"""DTensors: where the shard of this process lies in the whole tensor, and how to make others like it.

The only module that knows placements. Nothing here imports torch.distributed.tensor before there is a DTensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fisheropt._shards import Place, Role

__all__ = [
    "cuts_blocks",
    "element_numbers",
    "is_dtensor",
    "local",
    "per_block",
    "place_of",
    "placed_like",
    "without_dim",
]


def is_dtensor(x: Any) -> bool:
    """True for a DTensor, without importing torch.distributed.tensor for those who have none."""
    return hasattr(x, "device_mesh") and hasattr(x, "placements")


def local(x: Any) -> Any:
    """The shard this process has of a DTensor, sharing its memory; anything else as it is."""
    return x.to_local() if is_dtensor(x) else x


def place_of(p: Any, dims: tuple[int, int] | None) -> Place | None:
    """The place of a DTensor; None where every process has all of it.

    ``dims``: the (row, column) dimensions of a factored tensor.
    """
    row, column = dims if dims is not None else (None, None)
    roles: dict[int | None, Role] = {row: "rows", column: "columns"}
    groups = tuple(
        (p.device_mesh.get_group(axis), "batch" if dims is None else roles.get(placement.dim, "batch"))
        for axis, placement in enumerate(p.placements)
        if not placement.is_replicate() and p.device_mesh.size(axis) > 1
    )
    return Place(p.numel(), groups, p.device_mesh.device_type) if groups else None


def placed_like(reference: Any, x: Any) -> Any:
    """``x`` as a DTensor placed like ``reference``, or as a whole tensor if that is none."""
    if not is_dtensor(reference):
        return x.full_tensor() if is_dtensor(x) else x
    if is_dtensor(x):
        return x.redistribute(reference.device_mesh, reference.placements)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(reference.device), reference.device_mesh, reference.placements)


def without_dim(p: Any, gone: int, value: float, dtype: torch.dtype) -> Tensor:
    """A DTensor full of ``value`` with the shape of ``p`` without dimension ``gone``, split as ``p`` is otherwise."""
    from torch.distributed.tensor import Replicate

    def rest(shape: Sequence[int]) -> list[int]:
        return [size for d, size in enumerate(shape) if d != gone]

    placements = [
        Replicate()
        if placement.is_replicate() or placement.dim == gone
        else _by_dim(placement, placement.dim - (placement.dim > gone))
        for placement in p.placements
    ]
    return _filled(p, rest(p.to_local().shape), rest(p.shape), placements, value, dtype)


def per_block(p: Any, block: int, value: float, dtype: torch.dtype) -> Tensor:
    """A DTensor full of ``value``, split as ``p``, with an element for every ``block`` along its last dimension.

    The last dimension of every shard is a multiple of ``block``: see `cuts_blocks`.
    """
    *others, last = p.to_local().shape
    return _filled(p, [*others, last // block], [*p.shape[:-1], p.shape[-1] // block], p.placements, value, dtype)


def _by_dim(placement: Any, dim: int) -> Any:
    """The same way to shard, of another dimension."""
    from torch.distributed.tensor import Shard

    factor = getattr(placement, "split_factor", None)  # what FSDP2 of tensor parallel has on the dimension both split
    return Shard(dim) if factor is None else type(placement)(dim, split_factor=factor)


def _filled(
    p: Any, here: Sequence[int], whole: Sequence[int], placements: Any, value: float, dtype: torch.dtype
) -> Tensor:
    from torch.distributed.tensor import DTensor

    shard = torch.full(tuple(here), value, dtype=dtype, device=p.to_local().device)
    shape = torch.Size(whole)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(shard, p.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def cuts_blocks(p: Any, block: int) -> bool:
    """Whether a shard of ``p`` begins or ends within a block of its last dimension."""
    sizes = [p.shape[-1]]
    for _, size in _axes_that_split(p, p.dim() - 1):
        sizes.append(-(-sizes[-1] // size))
    return any(size % block for size in sizes)


def element_numbers(p: Any) -> Tensor:
    """Where the elements of this process's shard are in the whole tensor, counted row by row: int64, shaped like it."""
    numbers = torch.zeros((), dtype=torch.int64, device=p.to_local().device)
    stride = 1
    for d in reversed(range(p.dim())):
        along = torch.arange(p.shape[d], device=numbers.device)
        for axis, size in _axes_that_split(p, d):
            shard, length = p.device_mesh.get_local_rank(axis), -(-len(along) // size)
            along = along[shard * length : (shard + 1) * length]
        numbers = (along * stride).view(-1, *[1] * (p.dim() - 1 - d)) + numbers
        stride *= p.shape[d]
    return numbers


def _axes_that_split(p: Any, d: int) -> list[tuple[int, int]]:
    """(mesh axis, its size) for those that split dimension ``d``, in the order in which they split it.

    That is the order of the mesh, but for strided sharding, which comes after the axes to its right.
    """
    axes = [a for a, placement in enumerate(p.placements) if not placement.is_replicate() and placement.dim == d]
    strided = [a for a in axes if hasattr(p.placements[a], "split_factor")]
    order = [a for a in axes if a not in strided] + strided[::-1]
    return [(a, p.device_mesh.size(a)) for a in order]
