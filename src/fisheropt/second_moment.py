"""What an optimizer holds of the average of squared gradients: f of FAdam, by whatever name and in whatever storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fisheropt._dtensor import is_dtensor
from fisheropt._math import bias_correction, outer_fisher
from fisheropt._optimizer import RuleOptimizer
from fisheropt._state import factored_dims
from fisheropt._storage import storage_of

__all__ = ["momentum", "second_moment"]

_CORRECTED = ("adam", "naturaladam")  # rules that keep their averages uncorrected, as torch.optim.Adam does


@torch.no_grad()
def second_moment(optimizer: Optimizer, p: Tensor, group: Mapping[str, Any]) -> Tensor | None:
    """The average of squared gradients of ``p`` that its next step would start from, unbiased as FAdam's f (SPEC D4).

    Returns:
        A tensor in the shape of ``p``, in float32 or float64, that may share memory with the state; None if the
        optimizer keeps no such average, or has not stepped ``p`` yet.

    Raises:
        TypeError: ``p`` is a DTensor.
    """
    if is_dtensor(p):
        raise TypeError("the statistics of a sharded parameter are not available; look at p.full_tensor() of a copy")
    state: dict[str, Any] = optimizer.state.get(p, {})
    if isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        if "exp_avg_sq" not in state:
            return None
        v: Tensor = state["exp_avg_sq"]
        return v / bias_correction(group["betas"][1], torch.as_tensor(state["step"])).to(v)
    if not isinstance(optimizer, RuleOptimizer) or "step" not in state:
        return None
    rule = optimizer.rule_for(p.shape, group)
    kept = {slot.name: storage_of(slot, p, group).read(slot, state) for slot in rule.slots if slot.name in state}
    if rule.factored:
        dims = factored_dims(p.shape, group["min_dim_size_to_factor"])
        assert dims is not None
        R, C = (slot.view(kept[slot.name], dims) for slot in rule.slots if slot.summed_over is not None)
        return outer_fisher(R, C).movedim((-2, -1), dims)
    name = next((name for name in ("f", "s") if name in kept), None)
    if name is None:
        return None
    f = kept[name]
    return f / bias_correction(group["betas"][1], state["step"]).to(f) if rule.function.__name__ in _CORRECTED else f


def momentum(optimizer: RuleOptimizer, p: Tensor, group: Mapping[str, Any]) -> Tensor | None:
    """The momentum of ``p`` in working precision, or None if none is kept."""
    state: dict[str, Any] = optimizer.state.get(p, {})
    for slot in optimizer.rule_for(p.shape, group).slots:
        if slot.name == "m" and "m" in state:
            return storage_of(slot, p, group).read(slot, state)
    return None
