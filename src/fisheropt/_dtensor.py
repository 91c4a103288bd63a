"""DTensors: where the shard of this process lies in the whole tensor, and how to make others like it.

The only module that knows placements. Nothing here imports torch.distributed.tensor before there is a DTensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fisheropt._shards import Place, Role

__all__ = [
    "cuts_blocks",
    "data_parallel_groups",
    "element_numbers",
    "extremes",
    "gathered",
    "is_dtensor",
    "local",
    "per_block",
    "place_of",
    "placed_like",
    "shard_of",
    "shard_range",
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


def gathered(p: Any, shard: Tensor) -> Tensor:
    """The whole of a tensor of which ``shard`` is what belongs to this process's shard of ``p``. Collective."""
    from torch.distributed.tensor import DTensor

    stride = _contiguous_stride(p.shape)
    placed = DTensor.from_local(shard, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=stride)
    whole: Tensor = placed.full_tensor()
    return whole


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
    stride = _contiguous_stride(shape)
    return DTensor.from_local(shard, p.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def _contiguous_stride(shape: torch.Size) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def cuts_blocks(p: Any, block: int) -> bool:
    """Whether a shard of ``p`` begins or ends within a block of its last dimension."""
    sizes = [p.shape[-1]]
    for _, size in _axes_that_split(p, p.dim() - 1):
        sizes.append(-(-sizes[-1] // size))
    return any(size % block for size in sizes)


def shard_range(p: Any, d: int) -> range:
    """Which indices along dimension ``d`` this process's shard has."""
    along = range(p.shape[d])
    for axis, size in _axes_that_split(p, d):
        shard, length = p.device_mesh.get_local_rank(axis), -(-len(along) // size)
        along = along[shard * length : (shard + 1) * length]
    return along


def element_numbers(p: Any) -> Tensor:
    """Where the elements of this process's shard are in the whole tensor, counted row by row: int64, shaped like it."""
    numbers = torch.zeros((), dtype=torch.int64, device=p.to_local().device)
    stride = 1
    for d in reversed(range(p.dim())):
        along = shard_range(p, d)
        indices = torch.arange(along.start, along.stop, device=numbers.device)
        numbers = (indices * stride).view(-1, *[1] * (p.dim() - 1 - d)) + numbers
        stride *= p.shape[d]
    return numbers


def shard_of(p: Any, x: Tensor) -> Tensor:
    """Of ``x``, whose last dimensions broadcast to ``p``, what belongs to this process's shard of ``p``."""
    for d in range(p.dim()):
        along, at = shard_range(p, d), x.dim() - p.dim() + d
        if x.shape[at] != 1:
            x = x.narrow(at, min(along.start, x.shape[at]), len(along))
    return x.contiguous()


def data_parallel_groups(model: nn.Module) -> tuple[Any, ...] | None:
    """The process groups over which FSDP2 splits and copies the trainable parameters; none where they are whole.

    Returns:
        None where they are sharded in another way: tensor parallel, over several meshes, or only some of them.
    """
    sharded: list[Any] = [p for p in model.parameters() if is_dtensor(p) and p.requires_grad]
    if not sharded:
        return ()
    params = [p for p in model.parameters() if p.requires_grad]
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return None
    mesh = sharded[0].device_mesh
    if len(sharded) < len(params) or any(p.device_mesh != mesh or not _by_fsdp2(p.placements) for p in sharded):
        return None
    return tuple(mesh.get_group(axis) for axis in range(mesh.ndim) if mesh.size(axis) > 1)


def _by_fsdp2(placements: Any) -> bool:
    """Copies over the first dimension of a mesh of two, shards over the last."""
    return placements[-1].is_shard() and all(placement.is_replicate() for placement in placements[:-1])


def extremes(shards: Sequence[Any]) -> Tensor:
    """The smallest and the largest number of each whole DTensor: (len(shards), 2), in float64.

    One all-reduce per process group for all of them. What has no elements is between -inf and inf.
    """
    locals_ = [x.to_local() for x in shards]
    nothing = locals_[0].new_tensor([math.inf, -math.inf], dtype=torch.float64)
    spans = torch.stack([torch.stack(torch.aminmax(x)).double() if x.numel() else nothing for x in locals_])
    spans[:, 0].neg_()
    places = [place_of(x, None) for x in shards]
    for group in dict.fromkeys(group for place in places if place is not None for group, _ in place.groups):
        rows = [i for i, place in enumerate(places) if place is not None and any(g is group for g, _ in place.groups)]
        there = spans[rows].to(places[rows[0]].device)  # type: ignore[union-attr]
        torch.distributed.all_reduce(there, op=torch.distributed.ReduceOp.MAX, group=group)
        spans[rows] = there.to(spans.device)
    spans[:, 0].neg_()
    return spans


def _axes_that_split(p: Any, d: int) -> list[tuple[int, int]]:
    """(mesh axis, its size) for those that split dimension ``d``, in the order in which they split it.

    That is the order of the mesh, but for strided sharding, which comes after the axes to its right.
    """
    axes = [a for a, placement in enumerate(p.placements) if not placement.is_replicate() and placement.dim == d]
    strided = [a for a in axes if hasattr(p.placements[a], "split_factor")]
    order = [a for a in axes if a not in strided] + strided[::-1]
    return [(a, p.device_mesh.size(a)) for a in order]
