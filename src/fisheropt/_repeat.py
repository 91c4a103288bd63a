"""What a step found out about its tensors, for the step after it.

Which rule and kernel a tensor gets, and whether they take it as it is, costs more than to step a small tensor. It
depends on the options of the group and on how the tensors lie: their dtypes, shapes, strides and devices. Where all
of that is as it was, the kernels are called again at once. No tensor is kept here, nor any address: both are looked up
at every step, so gradients may be new ones, and state and data may have been replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisheropt._state import Options, Rule, Slot
from fisheropt._storage import Storage, parameter_as_kept, storage_of
from fisheropt.kernels import Implementation

__all__ = ["Call", "Repeat"]

_SCHEDULED = frozenset({"lr", "weight_decay", "betas"})  # what may change from step to step and decides nothing here


def _looks(xs: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """How tensors lie: all that decides whether a kernel takes them. Lists, as a call per tensor would take longer."""
    strides = [None if x.is_contiguous() else x.stride() for x in xs]
    return [x.dtype for x in xs], [x.shape for x in xs], strides, [x.device for x in xs]


class Call(NamedTuple):
    """Of which rule and by which kernel a tensor is stepped."""

    rule: Rule
    implementation: Implementation


class Repeat:
    """The calls that stepped some parameters of a group, each tensor as it is kept.

    Args:
        params: the parameters.
        group: their group.
        calls: of each parameter, the call that it took part in.
        state: the optimizer's.
    """

    def __init__(
        self, params: Sequence[Tensor], group: Options, calls: Sequence[Call], state: Mapping[Tensor, Any]
    ) -> None:
        self._params = list(params)
        self._options = {name: x for name, x in group.items() if name not in _SCHEDULED and _is_plain(x)}
        found: dict[Any, int] = {}  # a call for each rule, implementation and way to keep the slots
        self._which: list[int] = []
        self._calls: list[Call] = []
        self._slots: list[list[Slot | None]] = []
        self._storages: list[list[tuple[Slot, Storage]]] = []
        for p, call in zip(params, calls, strict=True):
            slots = _slots(call.rule, group)
            storages = [(slot, storage_of(slot, p, group)) for slot in slots if slot is not None]
            key = (id(call.rule), id(call.implementation), *[id(storage) for _, storage in storages])
            self._which.append(found.setdefault(key, len(found)))
            if len(found) > len(self._calls):
                self._calls.append(call)
                self._slots.append(slots)
                self._storages.append(storages)
        self._looks = _looks(self._tensors(state))

    def _tensors(self, state: Mapping[Tensor, Any]) -> list[Tensor]:
        """Parameters, gradients and everything that is kept for them; a KeyError where something is missing."""
        found: list[Any] = [*self._params, *[p.grad for p in self._params]]
        for i, storages in enumerate(self._storages):
            kept = [state[p] for p, which in zip(self._params, self._which, strict=True) if which == i]
            for slot, storage in storages:
                for key in storage.keys(slot):
                    found += [x[key] for x in kept]
        return found

    def run(self, params: Sequence[Tensor], group: Options, state: Mapping[Tensor, Any]) -> bool:
        """Step ``params``; or do nothing and return False, because something is not as it was."""
        if len(params) != len(self._params) or not all(map(is_, params, self._params)):
            return False
        if any(group.get(name) != x for name, x in self._options.items()):
            return False
        if any(_slots(c.rule, group) != slots for c, slots in zip(self._calls, self._slots, strict=True)):
            return False
        try:
            if _looks(self._tensors(state)) != self._looks:
                return False
        except KeyError:
            return False
        torch._foreach_add_([state[p]["step"] for p in params], 1)
        for i, (rule, implementation) in enumerate(self._calls):
            mine = [p for p, which in zip(params, self._which, strict=True) if which == i]
            kept = [state[p] for p in mine]
            rounded = [parameter_as_kept(p, group) for p in mine] if group.get("stochastic_rounding") else mine
            columns = iter([[s.as_kept(slot, x, group["seed"]) for x in kept] for slot, s in self._storages[i]])
            slots = [[None] * len(mine) if slot is None else next(columns) for slot in self._slots[i]]
            assert implementation.many is not None
            grads = [p.grad for p in mine]
            implementation.many(rounded, grads, [x["step"] for x in kept], *slots, **rule.arguments(group))
        return True


def _slots(rule: Rule, group: Options) -> list[Slot | None]:
    return [slot if slot.needed(group) else None for slot in rule.slots]


def _is_plain(x: Any) -> bool:
    return x is None or isinstance(x, bool | int | float | str | torch.dtype)
