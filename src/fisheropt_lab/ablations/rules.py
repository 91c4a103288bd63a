"""FAdam with one of its changes to Adam taken back: rule functions of their own, to be substituted (SPEC D7).

FAdam changes Adam in five ways. Each function here is Algorithm 1 of arXiv:2405.12807 (`fisheropt.fadam`, whose
symbols these are) with one of the five as Adam has it; the line that differs says so. Together with `adam_like`, which
takes all of them back, they show which change does the work. A test holds each to an oracle in NumPy.
"""

from __future__ import annotations

from torch import Tensor

from fisheropt.rules import (
    Rule,
    Slot,
    bias_correction,
    clip_by_rms_,
    debiased,
    needs_momentum,
    power,
    quotient,
    rms,
    square,
)

Lr = float | Tensor
Betas = tuple[float, float]


def momentum_first(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: Lr,
    betas: Betas,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """The momentum averages the gradient, and the average is divided by the metric, as in Adam."""
    d = _metric(g, step, f, betas[1], eps, eps2, rho)  # lines 6 to 8
    average = g if m is None else m.mul_(betas[0]).add_(g, alpha=1 - betas[0])  # before the metric, not after it
    gbar, gw = quotient(average, d), quotient(p, d)  # lines 9 and 12
    clip_by_rms_(clip, gbar, gw)  # lines 10 and 13
    p.sub_(gw.mul_(weight_decay).add_(gbar) * lr)  # line 14


def corrected_momentum(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: Lr,
    betas: Betas,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """The momentum is divided by 1 - beta1^t when it is read, as in Adam, so that no warm-up is built in."""
    d = _metric(g, step, f, betas[1], eps, eps2, rho)  # lines 6 to 8
    gbar, gw = quotient(g, d), quotient(p, d)  # lines 9 and 12
    clip_by_rms_(clip, gbar, gw)  # lines 10 and 13
    mhat = gbar if m is None else m.mul_(betas[0]).add_(gbar, alpha=1 - betas[0]) / bias_correction(betas[0], step)
    p.sub_(gw.mul_(weight_decay).add_(mhat) * lr)  # line 14, with the corrected momentum


def no_clip(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: Lr,
    betas: Betas,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """Neither the natural gradient nor the decay is clipped: no lines 10 and 13. `clip` is not looked at."""
    d = _metric(g, step, f, betas[1], eps, eps2, rho)  # lines 6 to 8
    gbar, gw = quotient(g, d), quotient(p, d)  # lines 9 and 12
    m = gbar if m is None else m.mul_(betas[0]).add_(gbar, alpha=1 - betas[0])  # line 11
    p.sub_(gw.mul_(weight_decay).add_(m) * lr)  # line 14


def decoupled_decay(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: Lr,
    betas: Betas,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """The weight itself decays, as in AdamW, not the weight in the Fisher metric: no lines 12 and 13."""
    d = _metric(g, step, f, betas[1], eps, eps2, rho)  # lines 6 to 8
    gbar = quotient(g, d)  # line 9
    clip_by_rms_(clip, gbar)  # line 10
    m = gbar if m is None else m.mul_(betas[0]).add_(gbar, alpha=1 - betas[0])  # line 11
    p.sub_((p * weight_decay).add_(m) * lr)  # line 14, lambda theta in place of lambda gw


def constant_epsilon(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: Lr,
    betas: Betas,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """The epsilon is eps, whatever the gradient: no line 8. `eps2` is not looked at."""
    d = _metric(g, step, f, betas[1], eps, None, rho)  # lines 6 and 7
    gbar, gw = quotient(g, d), quotient(p, d)  # lines 9 and 12
    clip_by_rms_(clip, gbar, gw)  # lines 10 and 13
    m = gbar if m is None else m.mul_(betas[0]).add_(gbar, alpha=1 - betas[0])  # line 11
    p.sub_(gw.mul_(weight_decay).add_(m) * lr)  # line 14


def adam_like(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    f: Tensor,
    m: Tensor | None,
    *,
    lr: Lr,
    betas: Betas,
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """All five taken back. With rho = 1/2 this is AdamW, its second moment corrected by line 6."""
    d = _metric(g, step, f, betas[1], eps, None, rho)
    average = g if m is None else m.mul_(betas[0]).add_(g, alpha=1 - betas[0]) / bias_correction(betas[0], step)
    p.sub_((p * weight_decay).add_(quotient(average, d)) * lr)


def _metric(g: Tensor, step: Tensor, f: Tensor, beta2: float, eps: float, eps2: float | None, rho: float) -> Tensor:
    """Lines 6 to 8 and the denominator of lines 9 and 12; f is changed in place."""
    b2hat, one_minus_b2hat = debiased(beta2, step)  # line 6
    f.mul_(b2hat).add_(square(g).mul_(one_minus_b2hat))  # line 7
    ehat = eps if eps2 is None else rms(g)[0].mul_(eps2).clamp_(max=eps)  # line 8
    return power(f, rho).add_(ehat ** (2 * rho))


SLOTS = (
    Slot("f", "diagonal empirical Fisher information", init=1.0),
    Slot("m", "momentum", signed=True, needed=needs_momentum),
)
VARIANTS = {
    function.__name__: Rule(function, SLOTS)
    for function in (momentum_first, corrected_momentum, no_clip, decoupled_decay, constant_epsilon, adam_like)
}
