"""FAdam on the CPU: Algorithm 1 as two passes over memory. In plain PyTorch, and with its symbols: `fisheropt.fadam`.

    gather    reads p, g and f; adds up g^2 (for line 8), gbar^2 (line 10) and gw^2 (line 13); changes nothing
    apply     reads p, g, f and m, works out f and the metric once more, and writes p, f and m

Line 8 asks for rms(g) before lines 9 and 12 can be summed, which would be a pass of its own. But ehat is nearly always
eps or nearly always not: where it was eps last time, `gather` takes that for granted, and is repeated if it is wrong.
The mathematics of an element is in `_natural`.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels import Stored
from fisheropt.kernels.numba._compile import elementwise
from fisheropt.kernels.numba._engine import apply, control_for, gather, implements, resolve, work
from fisheropt.kernels.numba._job import addresses, declined, load_step, number, total, touched
from fisheropt.kernels.numba._kept import BLOCK, Kept, ahead, batches, close, kept, open_, room, size_of
from fisheropt.kernels.numba._memory import key_of
from fisheropt.kernels.numba._metric import SMALL, debiased, exponent, rms, shrink
from fisheropt.kernels.numba._natural import (
    move,
    move_carefully,
    move_without_momentum,
    sum_both,
    sum_careful,
    sum_g,
    sum_g_careful,
    sum_gbar,
)
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together

__all__ = ["STORED", "fadam", "fadam_many", "supports"]

STORED = True

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Job(NamedTuple):
    """A step of FAdam.

    Attributes:
        rho: the exponent of the metric (`_metric.exponent`).
        p, g, f, m: the tensors; no m without momentum.
        step, size: of each, the address of t and the number of elements.
        lr, beta1, beta2, eps, eps2, clip, weight_decay: as in the rule; eps2 and clip are infinite for None.
        adaptive: of each tensor, whether ehat was not eps; a guess only.
        ehat: of each tensor, ehat^(2 rho).
        sums: of each chunk, the sums of g^2, gbar^2 and gw^2.
        scale: of each tensor, the factors of lines 10 and 13.
        careful, repeat: of each tensor, whether its numbers need float64, and whether it is to be gathered again.
    """

    rho: Any
    p: Kept
    g: Kept
    f: Kept
    m: Kept
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


_G2, _GBAR2, _GW2 = range(3)

# -- the phases of a step ----------------------------------------------------------------------------------------------

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
    i, stop = plan.start[chunk], plan.stop[chunk]
    p, g = open_(job.p, t, i, stop, None), open_(job.g, t, i, stop, None)
    room_f = room(job.f)
    while i < stop:
        end = min(i + BLOCK, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        ahead(job.g, t, soon, later)
        if has_g:
            x = sum_g(g, i, end)
            g2 += x if _SAFE_LOW < x < _SAFE_HIGH else sum_g_careful(g, i, end)
        if has_bar:
            ahead(job.f, t, soon, later)
            f = open_(job.f, t, i, end, room_f)
            if careful:
                x, y = sum_careful(p, g, f, i, end, b2hat, new, job.rho.rho, e)
            else:
                if has_gw:
                    ahead(job.p, t, soon, later)
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
    step = load_step(job.step[t])
    b2hat, new = debiased(job.beta2, step)
    has_m = job.m.address.size > 0
    of_gbar = job.scale[t, 0] * (1.0 - job.beta1 if has_m else 1.0)
    of_gw = job.scale[t, 1] * job.lr * job.weight_decay
    lr, beta1, rho, e = job.lr, job.beta1, job.rho.rho, job.ehat[t]
    b2hat_, new_, e_ = np.float32(b2hat), np.float32(new), np.float32(e)
    beta1_, of_gbar_, lr_, of_gw_ = np.float32(beta1), np.float32(of_gbar), np.float32(lr), np.float32(of_gw)
    key_p, key_f, key_m = key_of(job.p.salt, step), key_of(job.f.salt, step), key_of(job.m.salt, step)
    i, stop = plan.start[chunk], plan.stop[chunk]
    p, g = open_(job.p, t, i, stop, None), open_(job.g, t, i, stop, None)
    room_f, room_m = room(job.f), room(job.m)
    while i < stop:
        end = min(i + BLOCK, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        ahead(job.p, t, soon, later)
        ahead(job.g, t, soon, later)
        ahead(job.f, t, soon, later)
        f, m = open_(job.f, t, i, end, room_f), open_(job.m, t, i, end, room_m)
        if has_m:
            ahead(job.m, t, soon, later)
        if job.careful[t]:
            args = (b2hat, new, rho, e, beta1, of_gbar, lr, of_gw, key_p, key_f, key_m)
            move_carefully(p, g, f, m, has_m, i, end, *args)
        elif has_m:
            args_ = (b2hat_, new_, job.rho, e_, beta1_, of_gbar_, lr_, of_gw_, key_p, key_f, key_m)
            move(p, g, f, m, i, end, *args_)
        else:
            move_without_momentum(p, g, f, i, end, b2hat_, new_, job.rho, e_, of_gbar_, lr_, of_gw_, key_p, key_f)
        close(job.f, t, i, end, room_f, key_f)
        if has_m:
            close(job.m, t, i, end, room_m, key_m)
        i = end


@elementwise
def smallest_metric(e, rho):
    """The smallest denominator of lines 9 and 12 that is not 0, in float32."""
    return e if e > 0.0 else 1.4e-45**rho


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(
    p: Tensor | Stored, g: Tensor, slots: Sequence[Tensor | Stored | None], options: Mapping[str, Any]
) -> str | None:
    """Why these tensors cannot be taken, or None."""
    if (reason := declined(p, g, slots)) is not None:
        return reason
    if options["rho"] > 1.0:
        return "rho > 1 leaves the range of float32"
    return None


def fadam(
    p: Tensor | Stored,
    g: Tensor,
    step: Tensor,
    f: Tensor | Stored,
    m: Tensor | Stored | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """`fisheropt.fadam.fadam` for one dense tensor, with its slots in its memory order."""
    options: dict[str, Any] = {"eps": eps, "eps2": eps2, "clip": clip, "rho": rho, "weight_decay": weight_decay}
    fadam_many((p,), (g,), (step,), (f,), (m,), lr=lr, betas=betas, **options)


def fadam_many(
    p: Sequence[Tensor | Stored],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    f: Sequence[Tensor | Stored],
    m: Sequence[Tensor | Stored | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """`fisheropt.fadam.fadam` for many tensors, each with its slots in the memory order of p."""
    for mine in batches(p, f, m):
        sizes = tuple([size_of(p[i]) for i in mine])
        plan = plan_for(sizes)
        n = len(sizes)
        job = Job(
            rho=exponent(rho),
            p=kept(p, mine),
            g=kept(g, mine),
            f=kept(f, mine),
            m=kept(m, mine),
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
    touched(p)


@lru_cache(maxsize=1024)
def _adaptive(sizes: tuple[int, ...], eps: float, eps2: float | None) -> NDArray[np.bool_]:
    """Whether ehat was not eps at the last step, for tensors of these sizes: a guess, which changes no result."""
    return np.zeros(len(sizes), np.bool_)
