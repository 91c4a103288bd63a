"""FAdam: Adam as natural gradient descent with a diagonal empirical Fisher information matrix.

Source: Hwang, *FAdam: Adam is a natural gradient optimizer using diagonal empirical Fisher information*,
arXiv:2405.12807, Algorithm 1. For one tensor, with f_0 = 1 and m_0 = 0::

    g      = gradient of the loss                                         line 5
    b2hat  = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)                      line 6
    f      = b2hat f + (1 - b2hat) g^2                                    line 7
    ehat   = min(eps, eps2 rms(g))                                        line 8
    gbar   = g / (f^rho + ehat^(2 rho))                                   line 9
    gbar   = gbar / max(1, rms(gbar)/c)                                   line 10
    m      = beta1 m + (1 - beta1) gbar                                   line 11
    gw     = theta / (f^rho + ehat^(2 rho))                               line 12
    gw     = gw / max(1, rms(gw)/c)                                       line 13
    theta  = theta - eta (m + lambda gw)                                  line 14

======  ================  ===============  ==============================================================
symbol  argument          shape            meaning, unit and range
======  ================  ===============  ==============================================================
theta   ``p``             that of p        parameter
g       ``g``             that of p        gradient of the loss, in [loss]/[p]
t       ``step``          0-d              step of this tensor, from 1
f       ``f``             that of p        diagonal empirical Fisher information, [loss]^2/[p]^2, >= 0
m       ``m``             that of p        momentum over the natural gradient; rms(m) <= c
eta     ``lr``            scalar           length of a step: moves a tensor by at most about eta c in rms
beta1   ``betas[0]``      scalar           decay of m, in [0, 1); 0 keeps no momentum
beta2   ``betas[1]``      scalar           decay of f, in [0, 1)
eps     ``eps``           scalar           upper bound of the epsilon, in units of g, >= 0
eps2    ``eps2``          scalar or None   epsilon relative to rms(g), >= 0; None: the epsilon is eps
c       ``clip``          scalar or None   bound on the rms of the natural gradient and of the decay; None: no bound
rho     ``rho``           scalar           exponent of the metric, > 0; 1/2 is Adam's, 1 the natural gradient's
lambda  ``weight_decay``  scalar           decay in the Fisher metric, scaled by eta, >= 0
======  ================  ===============  ==============================================================

Deviations from the printed algorithm, each marked where it happens:

1. g is the gradient of the loss, not of the log-likelihood, so theta descends (SPEC D1).
2. 1 - b2hat is computed as (1 - beta2)/(1 - beta2^t), in float64 (D4b).
3. Where the denominator of lines 9 and 12 is zero, no gradient was ever seen: the component contributes 0 (D5).
4. Numbers beyond the largest finite one of the dtype saturate there (D5).

Cost: 8 bytes of state per float32 parameter (f and m), 4 without momentum.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fisheropt._math import clip_by_rms_, debiased, power, quotient, rms, square
from fisheropt._microbatch import MicrobatchOptimizer
from fisheropt._optimizer import ParamsT, options_given
from fisheropt._state import Options, Rule, Slot, StateDtype, needs_momentum

__all__ = ["FADAM", "FAdam", "adaptive_epsilon", "fadam", "natural_descent"]


def fadam(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """FAdam, Algorithm 1: one step of one tensor, in place. Symbols and shapes: the table of this module."""
    beta1, beta2 = betas
    b2hat, one_minus_b2hat = debiased(beta2, step)  # line 6, deviation 2
    f.mul_(b2hat).add_(square(g).mul_(one_minus_b2hat))  # line 7, deviation 4
    natural_descent(p, g, f, m, lr=lr, beta1=beta1, eps=eps, eps2=eps2, clip=clip, rho=rho, weight_decay=weight_decay)


def fadam_microbatch(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    q: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """FAdam with Equation 20: line 7 averages q, the mean square of the gradients of micro-batches, in place of g^2."""
    beta1, beta2 = betas
    b2hat, one_minus_b2hat = debiased(beta2, step)  # line 6, deviation 2
    f.mul_(b2hat).add_(q * one_minus_b2hat)  # line 7 with Equation 20
    natural_descent(p, g, f, m, lr=lr, beta1=beta1, eps=eps, eps2=eps2, clip=clip, rho=rho, weight_decay=weight_decay)


def adaptive_epsilon(g: Tensor, eps: float, eps2: float | None) -> Tensor | float:
    """ehat of Algorithm 1, line 8."""
    return eps if eps2 is None else rms(g)[0].mul_(eps2).clamp_(max=eps)


def natural_descent(
    p: Tensor,
    g: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    beta1: float,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """Lines 8 to 14 of Algorithm 1, which are also those of Algorithm 2: descend along g in the metric f."""
    ehat = adaptive_epsilon(g, eps, eps2)  # line 8
    d = power(f, rho).add_(ehat ** (2 * rho))  # the metric of lines 9 and 12
    gbar = quotient(g, d)  # line 9, deviations 3 and 4
    gw = quotient(p, d) if weight_decay > 0 else None  # line 12
    clip_by_rms_(clip, gbar, gw)  # lines 10 and 13, in one place so that the shards of a tensor meet once for both
    m = gbar if m is None else m.mul_(beta1).add_(gbar.mul_(1 - beta1))  # line 11
    p.sub_((m if gw is None else gw.mul_(weight_decay).add_(m)) * lr)  # line 14


FADAM = Rule(
    fadam,
    slots=(
        Slot("f", "diagonal empirical Fisher information", init=1.0),
        Slot("m", "momentum over the natural gradient", signed=True, needed=needs_momentum),
    ),
)

FADAM_MICROBATCH = Rule(fadam_microbatch, FADAM.slots)


class FAdam(MicrobatchOptimizer):
    r"""Implements FAdam (Hwang 2024, arXiv:2405.12807, Algorithm 1): a drop-in for `torch.optim.AdamW`.

    Adam's second moment is a diagonal empirical Fisher information matrix :math:`f`. FAdam takes it seriously:
    momentum runs over the natural gradient, the epsilon adapts to the gradient, and weight decay and clipping
    happen in the Fisher metric. Everything is per tensor; nothing couples one tensor to another.

    Args:
        params: iterable of parameters, of ``(name, parameter)`` pairs, or of dicts that define parameter groups.
        lr: learning rate :math:`\eta \ge 0`; a float or a tensor of one element. What suits AdamW is where to start.
        betas: decays :math:`(\beta_1, \beta_2)` of momentum and Fisher information, each in [0, 1).
            :math:`\beta_1 = 0` keeps no momentum and allocates none.
        eps: upper bound of the adaptive epsilon, in units of the gradient, >= 0.
        weight_decay: :math:`\lambda \ge 0`. Scaled by the learning rate, as AdamW's is, but applied in the Fisher
            metric and clipped: AdamW's 0.1 and FAdam's 1e-3 are of the same order. 0 skips its cost.
        eps2: the epsilon is ``min(eps, eps2 * rms(g))``; None makes it the constant ``eps``.
        clip: bound :math:`c > 0` on the root mean square of a tensor's natural gradient and of its decay; None:
            no bound.
        rho: exponent :math:`\rho > 0` of the metric.
        fisher: what f averages. ``"batch"``: the square of the gradient of a step, as printed. ``"microbatch"``
            (Equation 20): the mean of the squares of the gradients that the backward passes of a step bring, over
            data-parallel processes too; costs 4 bytes per parameter between backward and step, and runs eagerly.
        maximize: ascend instead of descend.
        backend: ``"auto"``, ``"eager"``, ``"compile"``, ``"numba"`` (CPU) or ``"triton"`` (CUDA).
        state_dtype: how state is kept. None: in float32, or float64 for float64 parameters. ``torch.bfloat16``: 2 bytes
            per number. ``"int8"``: 1 byte and a scale per block of 128, for tensors of 4096 elements and more. The
            small ones round stochastically; the rule itself runs in float32 all the same.
        stochastic_rounding: round bfloat16 parameters stochastically, so that steps smaller than half the distance of
            two of their numbers are not lost.
        seed: of the stochastic rounding, in [0, 2^32). The same on every rank.

    Raises:
        ValueError: an option is out of its range, a group has an unknown option, or a parameter appears twice.
        TypeError: a parameter is no tensor, is complex, or (at `step`) has a sparse gradient.

    State per parameter: ``step`` (int64), ``f`` and ``m`` in the shape of the parameter.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fisheropt.FAdam(model.parameters(), lr=1e-3)
        >>> model(torch.ones(1, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-3,
        *,
        eps2: float | None = 0.01,
        clip: float | None = 1.0,
        rho: float = 0.5,
        fisher: Literal["batch", "microbatch"] = "batch",
        maximize: bool = False,
        backend: str = "auto",
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, options_given(locals()))

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        return FADAM if options["fisher"] == "batch" else FADAM_MICROBATCH
