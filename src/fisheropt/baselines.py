"""The optimizers FAdam is compared with, as the FAdam paper prints them.

They exist to be measured against; to train with Adam, use `torch.optim`. Source of Adam and Adafactor: Hwang,
arXiv:2405.12807, Algorithms 3 and 4; symbols and shapes are those of `fisheropt.fadam` and `fisheropt.fadafactor`.

Adam, with f_0 = 0 and m_0 = 0::

    m      = beta1 m + (1 - beta1) g
    f      = beta2 f + (1 - beta2) g^2
    u      = (m / (1 - beta1^t)) / (sqrt(f / (1 - beta2^t)) + eps)
    u      = u / max(1, rms(u)/c)
    theta  = theta - eta (u + lambda theta)

Adafactor, with R_0 = C_0 = 0 (f_0 = 0 where it is not factored) and m_0 = 0::

    b2hat  = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)
    R      = b2hat R + (1 - b2hat) (row sums of g^2 + eps)
    C      = b2hat C + (1 - b2hat) (column sums of g^2 + eps)
    u      = g / sqrt(outer(R, C) / sum(R))
    u      = u / max(1, rms(u)/c)
    m      = beta1 m + (1 - beta1) eta u
    theta  = theta - (m + lambda theta)

NaturalAdam, with s_0 = 0 and m_0 = 0::

    m      = beta1 m + (1 - beta1) g
    s      = beta2 s + (1 - beta2) g^2
    eps_t  = eps / (1 + eps_decay t)
    d      = (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps_t)
    d      = d / max(1, |d|/kappa)
    theta  = theta - eta (d + lambda theta / (sqrt(s / (1 - beta2^t)) + eps_t))

Deviations: the moments of Adam are corrected when they are read and stored uncorrected (SPEC D12); a component whose
denominator is zero contributes 0, and numbers saturate at the largest finite one of the dtype (D5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisheropt._math import (
    bias_correction,
    clip_by_norm_,
    clip_by_rms_,
    debiased,
    outer_fisher,
    quotient,
    row_and_column_sums,
    square,
)
from fisheropt._optimizer import ParamsT, RuleOptimizer, options_given
from fisheropt._state import Options, Rule, Slot, StateDtype, factored_dims, needs_momentum

__all__ = ["Adafactor", "Adam", "NaturalAdam"]


def adam(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """Adam as in arXiv:2405.12807, Algorithm 3: one step of one tensor, in place."""
    beta1, beta2 = betas
    mhat = g if m is None else m.mul_(beta1).add_(g * (1 - beta1)) / bias_correction(beta1, step)
    f.mul_(beta2).add_(square(g).mul_(1 - beta2))
    d = (f / bias_correction(beta2, step)).sqrt_().add_(eps)
    u = quotient(mhat, d)
    clip_by_rms_(clip, u)
    p.sub_(u.add_(p, alpha=weight_decay).mul_(lr))


def adafactor(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    R: Tensor,
    C: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """Adafactor as in arXiv:2405.12807, Algorithm 4: one step of one matrix, or batch of matrices, in place."""
    b2hat, one_minus_b2hat = debiased(betas[1], step)
    row_sums, column_sums = row_and_column_sums(square(g).add_(eps))
    R.mul_(b2hat).add_(row_sums.mul_(one_minus_b2hat))
    C.mul_(b2hat).add_(column_sums.mul_(one_minus_b2hat))
    _adafactor_descent(p, g, outer_fisher(R, C), m, lr=lr, beta1=betas[0], clip=clip, weight_decay=weight_decay)


def adafactor_full(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """Algorithm 4 for a tensor that is not factored: f is the moving average itself."""
    b2hat, one_minus_b2hat = debiased(betas[1], step)
    f.mul_(b2hat).add_(square(g).add_(eps).mul_(one_minus_b2hat))
    _adafactor_descent(p, g, f, m, lr=lr, beta1=betas[0], clip=clip, weight_decay=weight_decay)


def _adafactor_descent(
    p: Tensor,
    g: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    beta1: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    u = quotient(g, f.sqrt())
    clip_by_rms_(clip, u)
    u = u * lr
    m = u if m is None else m.mul_(beta1).add_(u.mul_(1 - beta1))
    p.sub_(m.add(p, alpha=weight_decay))


def naturaladam(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    s: Tensor,
    m: Tensor | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps_decay: float,
    max_norm: float | None,
    weight_decay: float,
) -> None:
    """NaturalAdam: one step of one tensor, in place."""
    beta1, beta2 = betas
    mhat = g if m is None else m.mul_(beta1).add_(g * (1 - beta1)) / bias_correction(beta1, step)
    s.mul_(beta2).add_(square(g).mul_(1 - beta2))
    d = (s / bias_correction(beta2, step)).sqrt_().add_(eps / (1 + eps_decay * step.double()))
    u = quotient(mhat, d)
    clip_by_norm_(max_norm, u)
    p.sub_(u.add_(quotient(p, d), alpha=weight_decay).mul_(lr))


_FIRST = Slot("m", "moving average of the gradient", signed=True, needed=needs_momentum)
_STEPS = Slot("m", "moving average of the clipped steps, learning rate included", signed=True, needed=needs_momentum)
_SECOND = "moving average of the squared gradient"

ADAM = Rule(adam, slots=(Slot("f", _SECOND), _FIRST))
NATURALADAM = Rule(naturaladam, slots=(Slot("s", _SECOND), _FIRST))
ADAFACTOR_FULL = Rule(adafactor_full, slots=(Slot("f", _SECOND), _STEPS))
ADAFACTOR = Rule(
    adafactor,
    slots=(
        Slot("R", f"{_SECOND}, summed over the columns", summed_over="columns"),
        Slot("C", f"{_SECOND}, summed over the rows", summed_over="rows"),
        _STEPS,
    ),
    factored=True,
)


class Adam(RuleOptimizer):
    r"""Implements Adam as the FAdam paper prints it (arXiv:2405.12807, Algorithm 3).

    Differs from `torch.optim.AdamW` only in the clipping: ``clip=None`` is AdamW.

    Args:
        params: iterable of parameters, of ``(name, parameter)`` pairs, or of dicts that define parameter groups.
        lr: learning rate :math:`\eta \ge 0`; a float or a tensor of one element.
        betas: decays :math:`(\beta_1, \beta_2)` of the two moments, each in [0, 1).
        eps: added to the square root of the second moment, in units of the gradient, >= 0.
        weight_decay: decoupled decay :math:`\lambda \ge 0`, scaled by the learning rate.
        clip: bound :math:`c > 0` on the root mean square of a tensor's update; None: no bound.
        maximize, backend, state_dtype, stochastic_rounding, seed: as in `fisheropt.FAdam`.

    Raises:
        ValueError, TypeError: as `fisheropt.FAdam`.

    State per parameter: ``step`` (int64), ``f`` and ``m`` in the shape of the parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        clip: float | None = 1.0,
        maximize: bool = False,
        backend: str = "auto",
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, options_given(locals()))

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        return ADAM


class Adafactor(RuleOptimizer):
    r"""Implements Adafactor as the FAdam paper prints it (arXiv:2405.12807, Algorithm 4).

    Not `torch.optim.Adafactor`: that one scales its steps by the size of the parameter. Here the learning rate is
    part of what the momentum averages, and the weight decay is not scaled by it.

    Args:
        params: iterable of parameters, of ``(name, parameter)`` pairs, or of dicts that define parameter groups.
        lr: learning rate :math:`\eta \ge 0`; a float or a tensor of one element.
        betas: decays :math:`(\beta_1, \beta_2)` of the steps and of the second moment, each in [0, 1).
        eps: added to the squared gradient, in its units, >= 0.
        weight_decay: the fraction :math:`\lambda \ge 0` of a parameter taken off at every step, whatever the
            learning rate.
        clip: bound :math:`c > 0` on the root mean square of a tensor's update before the learning rate; None: no bound.
        momentum: False keeps no momentum and allocates none, as does ``betas[0] = 0``.
        min_dim_size_to_factor: a tensor is factored if its second-largest dimension has at least this size, >= 1.
        maximize, backend, state_dtype, stochastic_rounding, seed: as in `fisheropt.FAdam`.

    Raises:
        ValueError, TypeError: as `fisheropt.FAdam`.

    State per parameter: as `fisheropt.FAdafactor`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-30,
        weight_decay: float = 0.0,
        *,
        clip: float | None = 1.0,
        momentum: bool = True,
        min_dim_size_to_factor: int = 128,
        maximize: bool = False,
        backend: str = "auto",
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, options_given(locals()))

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        factored = factored_dims(shape, options["min_dim_size_to_factor"])
        return ADAFACTOR_FULL if factored is None else ADAFACTOR


class NaturalAdam(RuleOptimizer):
    r"""A published reading of FAdam that keeps Adam's order. It is NOT the paper's algorithm: use `fisheropt.FAdam`.

    The momentum averages gradients, not natural gradients; the epsilon falls with the step instead of following the
    gradient; each tensor's direction is scaled to an L2 norm instead of a root mean square; the decay is in the
    metric, but not clipped.

    Args:
        params: iterable of parameters, of ``(name, parameter)`` pairs, or of dicts that define parameter groups.
        lr: learning rate :math:`\eta \ge 0`; a float or a tensor of one element. A tensor moves by at most
            ``lr * max_norm`` in L2 norm, however large it is, so rates are larger than Adam's.
        betas: decays :math:`(\beta_1, \beta_2)` of the two moments, each in [0, 1).
        eps: the epsilon at the start, in units of the gradient, >= 0.
        weight_decay: :math:`\lambda \ge 0`, in the metric and scaled by the learning rate.
        eps_decay: the epsilon at step t is ``eps / (1 + eps_decay t)``, >= 0.
        max_norm: bound :math:`\kappa > 0` on the L2 norm of a tensor's direction; None: no bound.
        maximize, backend, state_dtype, stochastic_rounding, seed: as in `fisheropt.FAdam`.

    Raises:
        ValueError, TypeError: as `fisheropt.FAdam`.

    State per parameter: ``step`` (int64), ``s`` and ``m`` in the shape of the parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_decay: float = 1e-3,
        max_norm: float | None = 1.0,
        maximize: bool = False,
        backend: str = "auto",
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(params, options_given(locals()))

    def rule_for(self, shape: torch.Size, options: Options) -> Rule:
        return NATURALADAM
