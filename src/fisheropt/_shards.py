"""Sharded tensors: rules written for one whole tensor, run on the local shards of many, with global statistics.

A rule must not know that its tensors are sharded, yet where it asks for a statistic of a whole tensor the processes
have to meet. So a rule is first run on `Shards`, which write down what is done to them instead of doing it, and then a
`Lockstep` carries it out: for each tensor everything up to the first meeting, one small all-reduce for all that any
rule asked for there, for each tensor everything up to the second meeting, and so on. Rules of any number of tensors,
kinds and parameter groups meet together, and as often as the one that meets most often.

What is put off until which meeting follows from the data: an operation is in the phase in which all its operands are
known. The operations that touch a tensor keep the order in which the rule states them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

__all__ = ["Lockstep", "Place", "Role", "Shards", "each", "each_pair", "total"]

F = TypeVar("F", bound=Callable[..., Any])

Role = Literal["rows", "columns", "batch"]
"""What a mesh dimension splits of a tensor, as a factored rule sees it; "batch" is anything else."""


@dataclass(frozen=True)
class Place:
    """Where the other shards of a tensor are.

    Attributes:
        numel: elements of the whole tensor.
        groups: the process groups it is split over, each with what it splits.
        device: type of the device on which those groups communicate; offloaded shards are elsewhere.
    """

    numel: int
    groups: tuple[tuple[Any, Role], ...]
    device: str


class Shards:
    """The local shards of several tensors, or a number for each of them. What is done to it is written down.

    Attributes:
        parts: one per tensor; filled in when the `Lockstep` comes there, and None when nothing needs it any more.
        phase: how many meetings come before what is done to it next.
    """

    def __init__(self, batch: _Batch, parts: list[Any], phase: int = 0) -> None:
        self.batch = batch
        self.parts = parts
        self.phase = phase
        self.last: _Operation | None = None

    def numel(self) -> Shards:
        """The numbers of elements of the whole tensors."""
        return Shards(self.batch, [place.numel for place in self.batch.places])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **named: _write_down(_method(name), name, (self, *args), named)


def _method(name: str) -> Callable[..., Any]:
    return lambda part, *args, **named: getattr(part, name)(*args, **named)


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *others: _write_down(_method(name), name, (self, *others), {})


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow"):
    setattr(Shards, f"__{_name}__", _operator(f"__{_name}__"))


def each(function: F) -> F:
    """``function`` of tensors, also of `Shards`: then applied to each, the other arguments being the same for all.

    As everywhere in torch, a name that ends in an underscore says that the first argument is changed and returned.
    """
    return _mapped(function, 1)


def each_pair(function: F) -> F:
    """`each` for a function that returns two tensors."""
    return _mapped(function, 2)


def _mapped(function: F, results: int) -> F:
    @wraps(function)
    def mapped(*args: Any, **named: Any) -> Any:
        if any(isinstance(a, Shards) for a in args):
            return _write_down(function, function.__name__, args, named, results)
        return function(*args, **named)

    return mapped  # type: ignore[return-value]


def total(*summands: tuple[Shards, tuple[Role, ...]]) -> tuple[Any, ...]:
    """Sums over the shards of each tensor.

    Args:
        *summands: tensors, summed over those groups that split one of the roles beside them.

    Returns:
        The sums, in the dtype and shape of the summands; computed in float64, in which they also travel.
    """
    return tuple(_asked_for(shards, roles) for shards, roles in summands)


def _asked_for(shards: Shards, roles: tuple[Role, ...]) -> Shards:
    batch = shards.batch
    if not any(role in roles for place in batch.places for _, role in place.groups):
        return shards  # whole already
    sums = Shards(batch, [None] * len(batch.places), shards.phase + 1)
    batch.requests[shards.phase].append(_Request(shards, roles, sums))
    shards.last = None
    shards.phase += 1
    return sums


# -- what is written down ---------------------------------------------------------------------------------------------


class _Operation(NamedTuple):
    function: Callable[..., Any]
    args: tuple[Any, ...]
    named: dict[str, Any]
    results: tuple[Shards, ...]  # none where the first argument is changed instead

    def run(self, i: int) -> None:
        """For the i-th tensor."""
        out = self.function(*[a.parts[i] if isinstance(a, Shards) else a for a in self.args], **self.named)
        for shards, part in zip(self.results, out if len(self.results) > 1 else (out,), strict=False):
            shards.parts[i] = part
        for a in self.args:
            if isinstance(a, Shards) and a.last is self:
                a.parts[i] = None


class _Request(NamedTuple):
    summand: Shards
    roles: tuple[Role, ...]
    sums: Shards


@dataclass
class _Batch:
    """Tensors of one rule. ``after[i]``: what to do when the i-th is through."""

    places: Sequence[Place]
    after: Sequence[Sequence[Callable[[], None]]]
    operations: dict[int, list[_Operation]] = field(default_factory=lambda: defaultdict(list))
    requests: dict[int, list[_Request]] = field(default_factory=lambda: defaultdict(list))

    def run(self, phase: int) -> None:
        """What is done between two meetings, tensor by tensor, so that little of it exists at a time."""
        last = max(self.operations)
        for i in range(len(self.places)):
            for operation in self.operations[phase]:
                operation.run(i)
            if phase == last:
                for write in self.after[i]:
                    write()


def _write_down(function: Callable[..., Any], name: str, args: Any, named: dict[str, Any], results: int = 1) -> Any:
    operands = [a for a in args if isinstance(a, Shards)]
    batch, phase = operands[0].batch, max(x.phase for x in operands)
    in_place = name.endswith("_") and not name.endswith("__")
    new = () if in_place else tuple(Shards(batch, [None] * len(batch.places)) for _ in range(results))
    operation = _Operation(function, args, named, new)
    batch.operations[phase].append(operation)
    for x in (*operands, *new):
        x.phase = phase  # so that whatever touches it later also comes later
        x.last = operation
    if in_place:
        return args[0]
    return new if results > 1 else new[0]


# -- carrying it out --------------------------------------------------------------------------------------------------


class Lockstep:
    """Rules for sharded tensors, which run together. Empty at first."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def add(
        self,
        rule: Callable[..., None],
        arguments: Sequence[Sequence[Tensor | None]],
        places: Sequence[Place],
        after: Sequence[Sequence[Callable[[], None]]],
        options: dict[str, Any],
    ) -> None:
        """Run ``rule(*tensors, **options)`` on each of several tensors, later.

        Args:
            arguments: for each argument of the rule that of every tensor; an argument is None for all or for none.
            places: for each tensor the place of its shard.
            after: for each tensor what to do when it is through.
        """
        batch = _Batch(places, after)
        rule(*(None if parts[0] is None else Shards(batch, list(parts)) for parts in arguments), **options)
        self._batches.append(batch)

    def run(self) -> None:
        """Do what was added. Collective: every process that shares a tensor has added the same."""
        phases = max((max(batch.operations) for batch in self._batches), default=-1)
        for phase in range(phases + 1):
            for batch in self._batches:
                batch.run(phase)
            _meet([request for batch in self._batches for request in batch.requests[phase]])


def _meet(requests: Sequence[_Request]) -> None:
    """All sums that are asked for: one all-reduce per process group."""
    places = [request.summand.batch.places for request in requests]
    sums = [[part.double() for part in request.summand.parts] for request in requests]
    for group in dict.fromkeys(group for row in places for place in row for group, _ in place.groups):
        needed = [
            (r, i)
            for r, request in enumerate(requests)
            for i, place in enumerate(places[r])
            if any(g is group and role in request.roles for g, role in place.groups)
        ]
        if not needed:
            continue
        buffer = torch.cat([sums[r][i].reshape(-1) for r, i in needed])
        r, i = needed[0]
        there = buffer.to(places[r][i].device)
        torch.distributed.all_reduce(there, group=group)
        pieces = there.to(buffer.device).split([sums[r][i].numel() for r, i in needed])  # type: ignore[no-untyped-call]
        for (r, i), piece in zip(needed, pieces, strict=True):
            sums[r][i] = piece.view_as(sums[r][i])
    for request, row in zip(requests, sums, strict=True):
        request.sums.parts[:] = [s.to(part.dtype) for s, part in zip(row, request.summand.parts, strict=True)]
        if request.summand.last is None:
            request.summand.parts.clear()
