"""What a step did to one tensor, in numbers: is the epsilon or the clip at work, how much of the step is weight decay?

For FAdam and FAdafactor, in the letters of Algorithm 1 (`fisheropt.fadam`), with p the parameter before the step::

    epsilon          ehat                                                                    line 8
    epsilon share    share of the entries with ehat^(2 rho) >= f^rho > 0: there the metric is more epsilon than Fisher
    clip             rms(gbar) before line 10, over c: above 1 the clip is at work           lines 9 and 10
    decay clip       the same of gw                                                          lines 12 and 13
    decay share      rms(lambda gw) / (rms(lambda gw) + rms(m))                              line 14

For `torch.optim.Adam` and `AdamW`, and the paper's Adam, the epsilon share is that of ``eps >= sqrt(vhat) > 0``. The
change of the parameter and the distribution of f are there for every optimizer that has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fisheropt._math import power, quotient
from fisheropt._optimizer import RuleOptimizer
from fisheropt.baselines import Adam
from fisheropt.fadafactor import FAdafactor
from fisheropt.fadam import FAdam, adaptive_epsilon
from fisheropt.second_moment import momentum, second_moment

__all__ = ["QUANTILES", "StepStatistics", "step_statistics"]

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""At which the distribution of f is described."""

_SAMPLE = 1 << 12  # entries of f that are looked at, evenly spaced: enough for these quantiles


class StepStatistics(NamedTuple):
    """Of one step of one tensor. None where the optimizer has no such thing.

    Attributes:
        entries: of the tensor.
        weight_rms: of the tensor before the step, in [p].
        grad_rms: of its gradient, in [loss]/[p].
        update_rms: of the change, in [p].
        update_ratio: update_rms / weight_rms; NaN for a tensor of zeros.
        epsilon: what is added to the square root of f, in the units of the gradient.
        epsilon_share: of the entries, in [0, 1].
        clip: >= 0; above 1 the clip is at work.
        decay_clip: >= 0; above 1 the clip of the weight decay is at work.
        decay_share: of the step, in [0, 1].
        fisher_quantiles: of f, at `QUANTILES`, in [loss]^2/[p]^2.
    """

    entries: int
    weight_rms: float
    grad_rms: float
    update_rms: float
    update_ratio: float
    epsilon: float | None = None
    epsilon_share: float | None = None
    clip: float | None = None
    decay_clip: float | None = None
    decay_share: float | None = None
    fisher_quantiles: tuple[float, ...] | None = None


@torch.no_grad()
def step_statistics(optimizer: Optimizer, p: Tensor, group: Mapping[str, Any], before: Tensor) -> StepStatistics | None:
    """What the last step did to ``p``. Reads, and changes nothing.

    Args:
        optimizer: after its step, and before its gradients are set to zero.
        p: one of its parameters.
        group: the group that has it.
        before: p before the step.

    Returns:
        None if there is no gradient or nothing in the tensor.

    Raises:
        TypeError: ``p`` is a DTensor.
    """
    if p.grad is None or p.numel() == 0:
        return None
    f = second_moment(optimizer, p, group)
    precision = torch.promote_types(torch.float32, p.dtype)
    x, g = before.to(precision), p.grad.to(precision)
    weight, gradient, update = _rms(x), _rms(g), _rms(p.to(precision) - x)
    found = StepStatistics(
        p.numel(), weight, gradient, update, update / weight if weight else float("nan"), **_distribution(f)
    )
    if f is None:
        return found
    if isinstance(optimizer, FAdam | FAdafactor):
        return found._replace(**_of_fadam(optimizer, p, group, x, g, f.to(precision)))
    if isinstance(optimizer, torch.optim.Adam | Adam):
        return found._replace(epsilon=group["eps"], epsilon_share=_share(group["eps"], f.sqrt()))
    return found


def _of_fadam(
    optimizer: RuleOptimizer, p: Tensor, group: Mapping[str, Any], x: Tensor, g: Tensor, f: Tensor
) -> dict[str, Any]:
    rho, c, decay = group["rho"], group["clip"], group["weight_decay"]
    ehat = float(adaptive_epsilon(g, group["eps"], group["eps2"]))  # line 8
    metric = power(f, rho)
    found: dict[str, Any] = {"epsilon": ehat, "epsilon_share": _share(ehat ** (2 * rho), metric)}
    d = metric.add_(ehat ** (2 * rho))
    size_gbar = _rms(quotient(g, d))  # line 9
    size_gw = _rms(quotient(x, d)) if decay > 0 else 0.0  # line 12
    if c is not None:
        found["clip"] = size_gbar / c
        size_gbar = min(size_gbar, c)  # line 10
        if decay > 0:
            found["decay_clip"] = size_gw / c
            size_gw = min(size_gw, c)  # line 13
    m = momentum(optimizer, p, group)
    size_m = size_gbar if m is None else _rms(m)
    total = decay * size_gw + size_m
    found["decay_share"] = decay * size_gw / total if total else 0.0
    return found


def _rms(x: Tensor) -> float:
    """Root mean square, in one pass and without the promises of `fisheropt._math`: nothing is computed from it."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) / math.sqrt(x.numel())


def _share(epsilon: float, metric: Tensor) -> float:
    """Of the entries whose metric is not zero and not above the epsilon."""
    return float(((metric > 0) & (metric <= epsilon)).double().mean())


def _distribution(f: Tensor | None) -> dict[str, Any]:
    if f is None:
        return {}
    flat = f.reshape(-1)
    sample = flat[:: -(-flat.numel() // _SAMPLE)].double()
    at = torch.tensor(QUANTILES, dtype=torch.float64, device=sample.device)
    return {"fisher_quantiles": tuple(torch.quantile(sample, at).tolist())}
