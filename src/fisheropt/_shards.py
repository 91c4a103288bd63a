"""Sharded tensors: a rule written for one whole tensor, run on the local shards of many, with global statistics.

`Shards` holds the shards this process has of several tensors and passes every operation on to each of them, so that a
rule runs through once for all tensors together and does not know. Only where it asks for a statistic of whole tensors
must the processes meet, and there one small all-reduce serves all tensors (`total`), instead of one each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

__all__ = ["Place", "Role", "Shards", "each", "is_dtensor", "local", "place_of", "placed_like", "sharded_full", "total"]

F = TypeVar("F", bound=Callable[..., Any])

Role = Literal["rows", "columns", "batch"]
"""What a mesh dimension splits of a tensor, as a factored rule sees it; "batch" is anything else."""


@dataclass(frozen=True)
class Place:
    """Where the other shards of a tensor are.

    Attributes:
        numel: elements of the whole tensor.
        groups: the process groups it is split over, each with what it splits.
    """

    numel: int
    groups: tuple[tuple[Any, Role], ...]


class Shards:
    """The local shards of several tensors, or one number for each of them; operations apply to each."""

    def __init__(self, parts: Sequence[Any], places: Sequence[Place]) -> None:
        self.parts = list(parts)
        self.places = list(places)

    def like(self, parts: Sequence[Any]) -> Shards:
        """Other values for the same tensors."""
        return Shards(parts, self.places)

    def numel(self) -> Shards:
        """The numbers of elements of the whole tensors."""
        return self.like([place.numel for place in self.places])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: each(lambda part, *rest, **named: getattr(part, name)(*rest, **named))(
            self, *args, **kwargs
        )


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Shards, *others: Any) -> Any:
        return each(lambda part, *rest: getattr(part, name)(*rest))(self, *others)

    return operate


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow"):
    setattr(Shards, f"__{_name}__", _operator(f"__{_name}__"))


def each(function: F) -> F:
    """``function`` of tensors, also of `Shards`: then applied to each, the other arguments being the same for all."""

    @wraps(function)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        many = None
        for a in args:
            if isinstance(a, Shards):
                many = a
        if many is None:
            return function(*args, **kwargs)
        results = [
            function(*[a.parts[i] if isinstance(a, Shards) else a for a in args], **kwargs)
            for i in range(len(many.parts))
        ]
        if isinstance(results[0], tuple):
            return tuple(many.like(column) for column in zip(*results, strict=True))
        return many.like(results)

    return mapped  # type: ignore[return-value]


def total(*summands: tuple[Shards, tuple[Role, ...]]) -> tuple[Any, ...]:
    """Sums over the shards of each tensor: one all-reduce per process group for everything asked for together.

    Args:
        *summands: tensors, summed over those groups that split one of the roles beside them.

    Returns:
        The sums, in the dtype and shape of the summands; computed in float64, in which they also travel.
    """
    sums = [[part.double() for part in shards.parts] for shards, _ in summands]
    for group in dict.fromkeys(group for place in summands[0][0].places for group, _ in place.groups):
        needed = [
            (s, i)
            for s, (shards, roles) in enumerate(summands)
            for i, place in enumerate(shards.places)
            if any(g is group and role in roles for g, role in place.groups)
        ]
        if not needed:
            continue
        buffer = torch.cat([sums[s][i].reshape(-1) for s, i in needed])
        torch.distributed.all_reduce(buffer, group=group)
        pieces = buffer.split([sums[s][i].numel() for s, i in needed])  # type: ignore[no-untyped-call]
        for (s, i), piece in zip(needed, pieces, strict=True):
            sums[s][i] = piece.view_as(sums[s][i])
    return tuple(
        shards.like([done.to(part.dtype) for done, part in zip(row, shards.parts, strict=True)])
        for row, (shards, _) in zip(sums, summands, strict=True)
    )


# -- DTensor ----------------------------------------------------------------------------------------------------------


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
    return Place(p.numel(), groups) if groups else None


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
