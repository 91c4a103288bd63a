"""Go on from a running Adam or AdamW with FAdam: nobody has to restart a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fisheropt._math import bias_correction, clip_by_rms_, power, quotient
from fisheropt._state import working_dtype
from fisheropt._storage import storage_of
from fisheropt.fadam import FADAM, FAdam

__all__ = ["from_adamw"]

_CARRIED = ("lr", "betas", "eps", "maximize")
_BOOKKEEPING = ("initial_lr", "name", "param_names")


def from_adamw(
    source: torch.optim.Adam | Mapping[str, Any],
    params: Iterable[Parameter] | None = None,
    **options: Any,
) -> FAdam:
    """An `FAdam` that continues where a `torch.optim.Adam` or `AdamW` is.

    FAdam's Fisher information is Adam's bias-corrected second moment (SPEC D4), and its momentum averages natural
    gradients where Adam's averages gradients, so::

        step = t
        f    = v / (1 - beta2^t)
        m    = m_Adam / (f^rho + eps^(2 rho)), clipped to rms c

    m is what FAdam would hold now had f been constant and the clip not active. Groups keep ``lr``, ``betas``,
    ``eps`` and ``maximize``. The weight decay is NOT carried over, because FAdam's acts in the Fisher metric, where
    the same number means something else: it is FAdam's default or the one given.

    Args:
        source: the optimizer, or its ``state_dict()`` as saved.
        params: only with a state_dict: the parameters, in the order in which the saved optimizer had them.
        **options: options of `FAdam` for every group, instead of the source's.

    Returns:
        The new optimizer. It shares the parameters, and no state, with the source.

    Raises:
        TypeError: ``source`` is neither, or ``params`` is missing or superfluous.
        ValueError: the numbers or shapes of parameters differ, or the state is not Adam's.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> adamw = torch.optim.AdamW(model.parameters(), lr=3e-4)
        >>> model(torch.ones(1, 4)).square().mean().backward()
        >>> adamw.step()
        >>> fadam = fisheropt.from_adamw(adamw, weight_decay=1e-3)
        >>> fadam.param_groups[0]["lr"], int(fadam.state[model.weight]["step"])
        (0.0003, 1)
    """
    if isinstance(source, torch.optim.Adam):  # AdamW is one
        if params is not None:
            raise TypeError("params is for a saved state_dict; an optimizer brings its own parameters")
        groups, states = (
            source.param_groups,
            [source.state.get(p, {}) for g in source.param_groups for p in g["params"]],
        )
    elif isinstance(source, Mapping) and {"state", "param_groups"} <= set(source):
        if params is None:
            raise TypeError("params is missing: a saved state_dict holds no parameters; pass model.parameters()")
        groups, states = _saved(source, list(params))
    else:
        raise TypeError(f"source must be a torch.optim.Adam, AdamW or a state_dict of one, got {type(source).__name__}")

    fadam = FAdam([{**_carried(group), **options} for group in groups])
    remaining = iter(states)
    for adam_group, group in zip(groups, fadam.param_groups, strict=True):
        for p in group["params"]:
            if state := next(remaining):
                fadam.state[p] = _converted(p, state, adam_group["betas"][1], group)
    return fadam


def _carried(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of Adam as one of FAdam."""
    if not {"lr", "betas", "eps"} <= set(group):
        raise ValueError(f"the saved groups are not Adam's: one has {sorted(set(group) - {'params'})}")
    kept = {name: group[name] for name in (*_CARRIED, *_BOOKKEEPING) if name in group}
    if isinstance(kept["lr"], Tensor):
        kept["lr"] = kept["lr"].clone()
    names = kept.pop("param_names", None)
    params = group["params"]
    return {**kept, "params": params if names is None else list(zip(names, params, strict=True))}


def _saved(source: Mapping[str, Any], params: list[Parameter]) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """The groups of a state_dict with parameters in the place of keys, and the states in the same order."""
    keys = [key for group in source["param_groups"] for key in group["params"]]
    if len(keys) != len(params):
        raise ValueError(f"the saved state has {len(keys)} parameters, params has {len(params)}")
    by_key = dict(zip(keys, params, strict=True))
    groups = [{**group, "params": [by_key[key] for key in group["params"]]} for group in source["param_groups"]]
    return groups, [source["state"].get(key, {}) for key in keys]


@torch.no_grad()
def _converted(p: Tensor, state: Mapping[str, Any], beta2: float, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """Adam's state of one parameter as FAdam's. ``beta2``: Adam's; ``group``: FAdam's."""
    if not {"step", "exp_avg", "exp_avg_sq"} <= set(state):
        raise ValueError(f"the state of a parameter is not Adam's: it has {sorted(state)}")
    shape = tuple(state["exp_avg_sq"].shape)
    if shape != tuple(p.shape):
        raise ValueError(f"the state of a parameter has shape {shape}, the parameter {tuple(p.shape)}")
    precision = working_dtype(p.dtype, group["state_dtype"])
    step = torch.as_tensor(state["step"]).reshape(()).to(p.device, torch.int64, copy=True)
    f = state["exp_avg_sq"].to(p.device, precision) / bias_correction(beta2, step)
    d = power(f, group["rho"]).add_(group["eps"] ** (2 * group["rho"]))
    m = quotient(state["exp_avg"].to(p.device, precision), d)
    clip_by_rms_(group["clip"], m)
    converted = {"step": step}
    for slot, value in zip(FADAM.slots, (f, m), strict=True):
        if slot.needed(group):
            storage = storage_of(slot, p, group)
            converted.update(storage.allocate(slot, p, group))
            storage.write(slot, converted, value, group["seed"])
    return converted
