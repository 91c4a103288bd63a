"""Check a saved state against the declared one, and copy it, before an optimizer changes anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fisheropt._dtensor import is_dtensor, local, placed_like
from fisheropt._layout import same_layout
from fisheropt._options import check_options
from fisheropt._state import Options, Rule, Slot
from fisheropt._storage import converted, scale_of, storage_of

__all__ = ["Loaded", "checked_state_dict", "ordered_by_name"]

_CODES = (torch.int8, torch.uint8)


class Loaded:
    """The state of one parameter, checked; opaque, so that torch's own loading passes it through without a cast."""

    def __init__(self, slots: dict[str, Tensor]) -> None:
        self.slots = slots


def checked_state_dict(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    defaults: Options,
    rule_for: Callable[[torch.Size, Options], Rule],
    optimizer: str,
) -> dict[str, Any]:
    """A state_dict whose per-parameter states are `Loaded`: copies in the layout and on the device of the parameters.

    Args:
        state_dict: as `torch.optim.Optimizer.state_dict` returns it.
        groups: the parameter groups of the optimizer that loads.
        defaults: its defaults; they fill in options that the saved groups lack.
        rule_for: its declaration of rules.
        optimizer: its name, for messages.

    Raises:
        ValueError: another number of groups or parameters, a bad option, or state that is not this optimizer's.
    """
    saved_groups = [{**defaults, **group} for group in state_dict["param_groups"]]
    if len(saved_groups) != len(groups):
        raise ValueError(f"state_dict has {len(saved_groups)} parameter groups, {optimizer} has {len(groups)}")
    states = dict(state_dict["state"])
    for i, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        keys, params = saved["params"], group["params"]
        if len(keys) != len(params):
            raise ValueError(
                f"group {i} of state_dict has {len(keys)} parameters, that of {optimizer} has {len(params)}"
            )
        known = {name: value for name, value in saved.items() if name in defaults}
        check_options(known, defaults, optimizer)
        names = group.get("param_names") or [f"parameter {j} of group {i}" for j in range(len(params))]
        for key, p, name in zip(keys, params, names, strict=True):
            if states.get(key):
                whose = f"the saved state of {name}, of shape {tuple(p.shape)},"
                states[key] = _checked(states[key], p, saved, rule_for(p.shape, saved), whose, optimizer)
        check_options(saved, defaults, optimizer, loaded=True)
    return {**state_dict, "state": states, "param_groups": saved_groups}


def _checked(saved: Mapping[str, Any], p: Tensor, options: Options, rule: Rule, whose: str, optimizer: str) -> Loaded:
    storages = [(slot, storage_of(slot, p, options)) for slot in rule.slots]
    required = {"step", *(slot.name for slot in rule.slots if not slot.optional)}
    expected = {"step", *(key for slot, storage in storages for key in storage.keys(slot))}
    scales = {scale_of(slot) for slot in rule.slots if slot.name in saved and saved[slot.name].dtype in _CODES}
    if not (required | scales <= set(saved) <= expected | scales):
        hint = ""
        if "exp_avg_sq" in saved:
            hint = "; to go on from a torch Adam or AdamW, use fisheropt.from_adamw"
        raise ValueError(f"{whose} is not that of {optimizer}: it has {sorted(saved)}, not {sorted(expected)}{hint}")
    slots = {"step": torch.as_tensor(saved["step"]).reshape(()).to(p.device, torch.int64, copy=True)}
    for slot, storage in storages:
        if slot.name not in saved:
            continue
        fresh = storage.allocate(slot, p, options)
        kept = {key: saved[key] for key in (slot.name, scale_of(slot)) if key in saved}
        for key, x in fresh.items():
            theirs = kept.get(key, x)
            if theirs.shape != x.shape and (key == slot.name or theirs.numel() != x.numel()):
                raise ValueError(
                    f"{whose} has {key!r} of shape {tuple(theirs.shape)}, {optimizer} needs {tuple(x.shape)}"
                )
        if _alike(kept, fresh, slot):
            for key, x in fresh.items():
                x.copy_(placed_like(x, kept[key] if is_dtensor(kept[key]) else kept[key].reshape(x.shape)))
        else:
            converted(slot, {"step": slots["step"], **kept}, fresh, storage, options["seed"])
        slots.update(fresh)
    return Loaded(slots)


def _alike(saved: Mapping[str, Tensor], fresh: Mapping[str, Tensor], slot: Slot) -> bool:
    """Whether saved numbers can be copied as they are. Blocks of 8-bit numbers depend on their order in memory."""
    if saved.keys() != fresh.keys():
        return False
    return len(saved) == 1 or same_layout(local(saved[slot.name]), local(fresh[slot.name]))


def ordered_by_name(saved: dict[str, Any], groups: list[dict[str, Any]], optimizer: str) -> dict[str, Any]:
    """``saved`` with the parameters of each group in our order, where it has their names."""
    if len(saved["param_groups"]) != len(groups):
        return saved  # refused later
    ordered = []
    for i, (theirs, ours) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        if "param_names" in theirs:
            if len(theirs["params"]) != len(theirs["param_names"]):
                names, params = len(theirs["param_names"]), len(theirs["params"])
                raise ValueError(f"group {i} of state_dict has {names} names for {params} parameters")
            keys = dict(zip(theirs["param_names"], theirs["params"], strict=True))
            if set(keys) != set(ours["param_names"]):
                odd = min(set(ours["param_names"]) ^ set(keys))
                raise ValueError(f"group {i} of state_dict and of {optimizer} differ: only one of them has {odd!r}")
            names = ours["param_names"]
            theirs = {**theirs, "params": [keys[name] for name in names], "param_names": list(names)}
        ordered.append(theirs)
    return {**saved, "param_groups": ordered}
