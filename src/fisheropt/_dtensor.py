"""DTensors: where the shard of this process lies in the whole tensor, and how to make others like it.

The only module that knows placements. Nothing here imports torch.distributed.tensor before there is a DTensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fisheropt._shards import Place, Role

__all__ = ["is_dtensor", "local", "place_of", "placed_like", "sharded_full"]


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


def sharded_full(p: Any, gone: int, value: float, dtype: torch.dtype) -> Tensor:
    """A DTensor full of ``value`` with the shape of ``p`` without dimension ``gone``, split as ``p`` is otherwise."""
    from torch.distributed.tensor import Replicate, Shard, full

    def without(placement: Any) -> Any:
        if placement.is_replicate() or placement.dim == gone:
            return Replicate()
        return Shard(placement.dim - (placement.dim > gone))

    shape = tuple(size for d, size in enumerate(p.shape) if d != gone)
    placements = [without(placement) for placement in p.placements]
    return full(shape, value, dtype=dtype, device_mesh=p.device_mesh, placements=placements)
