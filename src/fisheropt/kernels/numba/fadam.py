"""FAdam on the CPU: Algorithm 1 as two passes over memory. In plain PyTorch, and with its symbols: `fisheropt.fadam`.

    gather    reads p, g and f; adds up g^2 (for line 8), gbar^2 (line 10) and gw^2 (line 13); changes nothing
    apply     reads p, g, f and m, works out f and the metric once more, and writes p, f and m

Line 8 asks for rms(g) before lines 9 and 12 can be summed, which would be a pass of its own. But ehat is nearly always
eps or nearly always not: where it was eps last time, `gather` takes that for granted, and is repeated if it is wrong.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels.numba._compile import elementwise, summing
from fisheropt.kernels.numba._engine import apply, control_for, gather, implements, resolve, work
from fisheropt.kernels.numba._job import addresses, load_step, number, total, wrong_dtype
from fisheropt.kernels.numba._memory import TAGS, load, pointer, prefetch, store, width
from fisheropt.kernels.numba._metric import LARGEST, SMALL, debiased, exponent, limited, raised, rms, shrink, summand
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together

__all__ = ["fadam", "fadam_many", "supports"]

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Job(NamedTuple):
    """A step of FAdam.

    Attributes:
        tag: stands for the dtype of p and g (`_memory.TAGS`).
        rho: the exponent of the metric (`_metric.exponent`).
        p, g, f, m, step, size: addresses of each tensor, and its number of elements; m is empty without momentum.
        lr, beta1, beta2, eps, eps2, clip, weight_decay: as in the rule; eps2 and clip are infinite for None.
        adaptive: of each tensor, whether ehat was not eps; a guess only.
        ehat: of each tensor, ehat^(2 rho).
        sums: of each chunk, the sums of g^2, gbar^2 and gw^2.
        scale: of each tensor, the factors of lines 10 and 13.
        careful, repeat: of each tensor, whether its numbers need float64, and whether it is to be gathered again.
    """

    tag: Any
    rho: Any
    p: _Integers
    g: _Integers
    f: _Integers
    m: _Integers
    step: _Integers
    size: _Integers
    lr: float
    beta1: float
    beta2: float
    eps: float
    eps2: float
    clip: float
    weight_decay: float
    adaptive: NDArray[np.bool_]
    ehat: _Floats
    sums: _Floats
    scale: _Floats
    careful: NDArray[np.bool_]
    repeat: NDArray[np.bool_]


# -- the mathematics of a run of elements ------------------------------------------------------------------------------

_ZERO, _ONE = np.float32(0), np.float32(1)
_G2, _GBAR2, _GW2 = range(3)


@elementwise
def fisher(f, g, b2hat, new):
    """b2hat f + (1 - b2hat) g^2, saturating.                                                                line 7"""
    f = b2hat * f + new * (g * g)
    return LARGEST if f > LARGEST else f


@elementwise
def reciprocal(f, rho, ehat):
    """1 / (f^rho + ehat^(2 rho)), and 0 where that is 0 (SPEC D5).                                 lines 9 and 12"""
    d = raised(f, rho) + ehat
    return _ONE / d if d != _ZERO else _ZERO


@summing
def sum_g(g, i, end):
    """Sum of g^2, fast."""
    total = _ZERO
    for j in range(i, end):
        total += load(g, j) * load(g, j)
    return np.float64(total)


@summing
def sum_g_careful(g, i, end):
    """Sum of g^2."""
    total = 0.0
    for j in range(i, end):
        x = np.float64(load(g, j))
        total += x * x
    return total


@summing
def sum_gbar(g, f, i, end, b2hat, new, rho, ehat):
    """Sum of gbar^2, fast."""
    gbar2 = summand(_ZERO, rho)
    for j in range(i, end):
        x = load(g, j)
        gbar = summand(x * reciprocal(fisher(f[j], x, b2hat, new), rho, ehat), rho)  # line 9
        gbar2 += gbar * gbar
    return np.float64(gbar2), 0.0


@summing
def sum_both(p, g, f, i, end, b2hat, new, rho, ehat):
    """Sums of gbar^2 and gw^2, fast."""
    gbar2, gw2 = summand(_ZERO, rho), summand(_ZERO, rho)
    for j in range(i, end):
        x = load(g, j)
        r = reciprocal(fisher(f[j], x, b2hat, new), rho, ehat)
        gbar = summand(x * r, rho)  # line 9
        gw = summand(load(p, j) * r, rho)  # line 12
        gbar2 += gbar * gbar
        gw2 += gw * gw
    return np.float64(gbar2), np.float64(gw2)


@elementwise
def careful_quotients(p, g, f, b2hat, new, rho, ehat):
    """f, gbar and gw before the clips, in float64 and from float64 numbers; f is rounded to what can be stored."""
    f = limited(b2hat * f + new * (g * g), np.float64(LARGEST))  # line 7
    f = np.float64(np.float32(f))
    d = (math.sqrt(f) if rho == 0.5 else f if rho == 1.0 else f**rho) + ehat
    if d == 0.0:
        return f, 0.0, 0.0
    return f, limited(g / d, np.float64(LARGEST)), limited(p / d, np.float64(LARGEST))  # lines 9 and 12


@elementwise
def sum_careful(p, g, f, i, end, b2hat, new, rho, ehat):
    """Sums of gbar^2 and gw^2."""
    gbar2, gw2 = 0.0, 0.0
    for j in range(i, end):
        x = np.float64(load(g, j))
        _, gbar, gw = careful_quotients(np.float64(load(p, j)), x, np.float64(f[j]), b2hat, new, rho, ehat)
        gbar2 += gbar * gbar
        gw2 += gw * gw
    return gbar2, gw2


@elementwise
def move(p, g, f, m, i, end, b2hat, new, rho, ehat, beta1, of_gbar, lr, of_gw):
    """Lines 7 to 14; ``of_gbar``: (1 - beta1) times the clip of line 10; ``of_gw``: eta lambda times that of 13."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        f_j = fisher(f[j], x, b2hat, new)
        r = reciprocal(f_j, rho, ehat)
        m_j = beta1 * m[j] + of_gbar * limited(x * r, LARGEST)  # lines 9 to 11
        f[j] = f_j
        m[j] = m_j
        store(p, j, theta - (lr * m_j + of_gw * limited(theta * r, LARGEST)))  # lines 12 to 14


@elementwise
def move_without_momentum(p, g, f, i, end, b2hat, new, rho, ehat, of_gbar, lr, of_gw):
    """`move` with m = gbar."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        f_j = fisher(f[j], x, b2hat, new)
        r = reciprocal(f_j, rho, ehat)
        f[j] = f_j
        store(p, j, theta - (lr * (of_gbar * limited(x * r, LARGEST)) + of_gw * limited(theta * r, LARGEST)))


@elementwise
def move_carefully(p, g, f, m, has_m, i, end, b2hat, new, rho, ehat, beta1, of_gbar, lr, of_gw):
    """`move`, or `move_without_momentum`, in float64."""
    for j in range(i, end):
        x, theta = np.float64(load(g, j)), np.float64(load(p, j))
        f_j, gbar, gw = careful_quotients(theta, x, np.float64(f[j]), b2hat, new, rho, ehat)
        m_j = of_gbar * gbar
        if has_m:
            m_j += beta1 * np.float64(m[j])
            m[j] = np.float32(limited(m_j, np.float64(LARGEST)))
        f[j] = np.float32(f_j)
        store(p, j, np.float32(limited(theta - (lr * m_j + of_gw * gw), np.float64(LARGEST))))


# -- the phases of a step ----------------------------------------------------------------------------------------------

_RUN = 128  # elements summed in float32, 8 or more sums side by side
_AHEAD = 512
_SAFE_LOW, _SAFE_HIGH = 1e-24, 1e100  # a sum of squares in between is finite, and lost nothing to underflow


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    t = plan.tensor[chunk]
    if again and not job.repeat[t]:
        return
    e = job.ehat[t] if again else job.eps ** (2.0 * job.rho.rho)
    known = again or job.eps2 == math.inf or not job.adaptive[t]
    has_bar = job.clip < math.inf and known
    has_g = job.eps2 < math.inf and not again
    has_gw = has_bar and job.weight_decay != 0.0
    if not (has_bar or has_g):
        return
    b2hat, new = debiased(job.beta2, load_step(job.step[t]))
    fast_b2hat, fast_new, fast_e = np.float32(b2hat), np.float32(new), np.float32(e)
    careful = smallest_metric(e, job.rho.rho) < SMALL
    g2, gbar2, gw2 = 0.0, 0.0, 0.0
    p, g, f = pointer(job.p[t], job.tag), pointer(job.g[t], job.tag), pointer(job.f[t], _ZERO)
    size = width(job.tag)
    i, stop = plan.start[chunk], plan.stop[chunk]
    while i < stop:
        end = min(i + _RUN, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        prefetch(job.g[t], size * soon, size * later)
        if has_g:
            x = sum_g(g, i, end)
            g2 += x if _SAFE_LOW < x < _SAFE_HIGH else sum_g_careful(g, i, end)
        if has_bar:
            prefetch(job.f[t], 4 * soon, 4 * later)
            if careful:
                x, y = sum_careful(p, g, f, i, end, b2hat, new, job.rho.rho, e)
            else:
                if has_gw:
                    prefetch(job.p[t], size * soon, size * later)
                    x, y = sum_both(p, g, f, i, end, fast_b2hat, fast_new, job.rho, fast_e)
                else:
                    x, y = sum_gbar(g, f, i, end, fast_b2hat, fast_new, job.rho, fast_e)
                if not (x < _SAFE_HIGH and y < _SAFE_HIGH):
                    x, y = sum_careful(p, g, f, i, end, b2hat, new, job.rho.rho, e)
            gbar2 += x
            gw2 += y
        i = end
    if has_g:
        job.sums[chunk, _G2] = g2
    job.sums[chunk, _GBAR2] = gbar2
    job.sums[chunk, _GW2] = gw2


@implements(resolve, Job)
def _resolve(job, plan, t, again):
    if again and not job.repeat[t]:
        return False
    first, last = plan.first_chunk[t], plan.first_chunk[t] + plan.chunks[t]
    if not again:
        ehat = job.eps
        if job.eps2 < math.inf:
            bound = job.eps2 * rms(total(job.sums, first, last, _G2), job.size[t])
            ehat = job.eps if bound >= job.eps else bound  # line 8; NaN stays NaN
            guessed, job.adaptive[t] = job.adaptive[t], ehat != job.eps
            job.repeat[t] = job.clip < math.inf and (guessed or job.adaptive[t])
        job.ehat[t] = ehat ** (2.0 * job.rho.rho)
        if job.repeat[t]:
            return True
    of_gbar, of_gw = 1.0, 1.0
    if job.clip < math.inf:
        of_gbar = shrink(rms(total(job.sums, first, last, _GBAR2), job.size[t]), job.clip)  # line 10
        of_gw = shrink(rms(total(job.sums, first, last, _GW2), job.size[t]), job.clip)  # line 13
    job.scale[t, 0] = of_gbar
    job.scale[t, 1] = of_gw
    job.careful[t] = smallest_metric(job.ehat[t], job.rho.rho) < SMALL or of_gbar < SMALL or of_gw < SMALL
    return False


@implements(apply, Job)
def _apply(job, plan, chunk):
    t = plan.tensor[chunk]
    b2hat, new = debiased(job.beta2, load_step(job.step[t]))
    has_m = job.m.size > 0
    of_gbar = job.scale[t, 0] * (1.0 - job.beta1 if has_m else 1.0)
    of_gw = job.scale[t, 1] * job.lr * job.weight_decay
    e = job.ehat[t]
    p, g, f = pointer(job.p[t], job.tag), pointer(job.g[t], job.tag), pointer(job.f[t], _ZERO)
    m = pointer(job.m[t] if has_m else job.f[t], _ZERO)
    i, stop = plan.start[chunk], plan.stop[chunk]
    if job.careful[t]:
        move_carefully(p, g, f, m, has_m, i, stop, b2hat, new, job.rho.rho, e, job.beta1, of_gbar, job.lr, of_gw)
        return
    b2hat_, new_, e_ = np.float32(b2hat), np.float32(new), np.float32(e)
    beta1_, of_gbar_, lr_, of_gw_ = np.float32(job.beta1), np.float32(of_gbar), np.float32(job.lr), np.float32(of_gw)
    size = width(job.tag)
    while i < stop:
        end = min(i + _RUN, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        prefetch(job.p[t], size * soon, size * later)
        prefetch(job.g[t], size * soon, size * later)
        prefetch(job.f[t], 4 * soon, 4 * later)
        if has_m:
            prefetch(job.m[t], 4 * soon, 4 * later)
            move(p, g, f, m, i, end, b2hat_, new_, job.rho, e_, beta1_, of_gbar_, lr_, of_gw_)
        else:
            move_without_momentum(p, g, f, i, end, b2hat_, new_, job.rho, e_, of_gbar_, lr_, of_gw_)
        i = end


@elementwise
def smallest_metric(e, rho):
    """The smallest denominator of lines 9 and 12 that is not 0, in float32."""
    return e if e > 0.0 else 1.4e-45**rho


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(p: Tensor, g: Tensor, slots: Sequence[Tensor | None], options: Mapping[str, Any]) -> str | None:
    """Why these tensors cannot be taken, or None."""
    if (reason := wrong_dtype(p, g, slots)) is not None:
        return reason
    if options["rho"] > 1.0:
        return "rho > 1 leaves the range of float32"
    return None


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
    """`fisheropt.fadam.fadam` for one flat, contiguous tensor."""
    options: dict[str, Any] = {"eps": eps, "eps2": eps2, "clip": clip, "rho": rho, "weight_decay": weight_decay}
    fadam_many((p,), (g,), (step,), (f,), (m,), lr=lr, betas=betas, **options)


def fadam_many(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    f: Sequence[Tensor],
    m: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """`fisheropt.fadam.fadam` for many flat, contiguous tensors of any of the dtypes."""
    for dtype in {x.dtype for x in p}:
        mine = [i for i, x in enumerate(p) if x.dtype == dtype]
        sizes = tuple(p[i].numel() for i in mine)
        plan = plan_for(sizes)
        n = len(sizes)
        job = Job(
            tag=TAGS[dtype],
            rho=exponent(rho),
            p=addresses(p, mine),
            g=addresses(g, mine),
            f=addresses(f, mine),
            m=addresses(m, mine),
            step=addresses(step, mine),
            size=np.array(sizes),
            lr=number(lr),
            beta1=float(betas[0]),
            beta2=float(betas[1]),
            eps=float(eps),
            eps2=math.inf if eps2 is None else float(eps2),
            clip=math.inf if clip is None else float(clip),
            weight_decay=float(weight_decay),
            adaptive=_adaptive(sizes, eps, eps2),
            ehat=np.empty(n),
            sums=np.empty((plan.tensor.size, 3)),
            scale=np.empty((n, 2)),
            careful=np.empty(n, np.bool_),
            repeat=np.zeros(n, np.bool_),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    torch.autograd.graph.increment_version(p)


@lru_cache(maxsize=1024)
def _adaptive(sizes: tuple[int, ...], eps: float, eps2: float | None) -> NDArray[np.bool_]:
    """Whether ehat was not eps at the last step, for tensors of these sizes: a guess, which changes no result."""
    return np.zeros(len(sizes), np.bool_)
