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
from fisheropt._storage import parameter_as_kept, storage_of
from fisheropt.kernels import Implementation

__all__ = ["Call", "Repeat"]

_SCHEDULED = frozenset({"lr", "weight_decay", "betas"})  # what may change from step to step and decides nothing here

_Look = tuple[torch.dtype, torch.Size, tuple[int, ...], torch.device]


def _look(x: Tensor) -> _Look:
    """How ``x`` lies: all that decides whether a kernel takes it."""
    return x.dtype, x.shape, x.stride(), x.device


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
        self._calls = list({(id(call.rule), id(call.implementation)): call for call in calls}.values())
        self._slots = [_slots(call.rule, group) for call in self._calls]
        self._known = []
        for p, call in zip(params, calls, strict=True):
            which = self._calls.index(call)
            storages = [(slot, storage_of(slot, p, group)) for slot in self._slots[which] if slot is not None]
            looks = [(key, _look(state[p][key])) for slot, storage in storages for key in storage.keys(slot)]
            assert p.grad is not None
            self._known.append((which, _look(p), _look(p.grad), looks, storages))

    def run(self, params: Sequence[Tensor], group: Options, state: Mapping[Tensor, Any]) -> bool:
        """Step ``params``; or do nothing and return False, because something is not as it was."""
        if len(params) != len(self._params) or not all(map(is_, params, self._params)):
            return False
        if any(group.get(name) != x for name, x in self._options.items()):
            return False
        if any(_slots(c.rule, group) != slots for c, slots in zip(self._calls, self._slots, strict=True)):
            return False
        seed, steps, rows = group["seed"], [], [[] for _ in self._calls]  # type: ignore[var-annotated]
        rounds = bool(group.get("stochastic_rounding"))
        for p, (which, of_p, of_g, looks, storages) in zip(params, self._known, strict=True):
            kept, g = state.get(p), p.grad
            if not kept or g is None or _look(p) != of_p or _look(g) != of_g:
                return False
            for key, look in looks:
                if key not in kept or _look(kept[key]) != look:
                    return False
            step = kept["step"]
            steps.append(step)
            own = parameter_as_kept(p, group) if rounds else p
            rows[which].append((own, g, step, *[s.as_kept(slot, kept, seed) for slot, s in storages]))
        torch._foreach_add_(steps, 1)
        for (rule, implementation), slots, tensors in zip(self._calls, self._slots, rows, strict=True):
            columns = iter(zip(*tensors, strict=True))
            first = [next(columns) for _ in range(3)]
            none = [None] * len(tensors)
            arguments = [none if slot is None else next(columns) for slot in slots]
            assert implementation.many is not None
            implementation.many(*first, *arguments, **rule.arguments(group))
        return True


def _slots(rule: Rule, group: Options) -> list[Slot | None]:
    return [slot if slot.needed(group) else None for slot in rule.slots]


def _is_plain(x: Any) -> bool:
    return x is None or isinstance(x, bool | int | float | str | torch.dtype)
