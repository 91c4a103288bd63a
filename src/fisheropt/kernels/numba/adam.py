"""Adam on the CPU, as the paper prints it: two passes over memory. In plain PyTorch: `fisheropt.baselines.adam`.

gather    reads g, f and m; adds up u^2; changes nothing. Without a clip it is skipped
apply     reads p, g, f and m, works out u once more, and writes p, f and m
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels import Stored
from fisheropt.kernels.numba._compile import elementwise, summing
from fisheropt.kernels.numba._engine import apply, control_for, gather, implements, resolve, work
from fisheropt.kernels.numba._job import addresses, declined, load_step, number, total, touched
from fisheropt.kernels.numba._kept import BLOCK, Kept, ahead, batches, close, kept, open_, room, size_of
from fisheropt.kernels.numba._memory import keep, key_of, load
from fisheropt.kernels.numba._metric import LARGEST, SMALL, limited, rms, shrink
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together

__all__ = ["STORED", "adam", "adam_many", "supports"]

STORED = True

_Integers = NDArray[np.int64]


class Job(NamedTuple):
    """A step of Adam.

    Attributes:
        p, g, f, m: the tensors; no m without momentum.
        step, size: of each, the address of t and the number of elements.
        sums: of each chunk, the sum of u^2.
        scale: of each tensor, the factor of the clip.
        careful: of each tensor, whether its numbers need float64.
    """

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
    clip: float
    weight_decay: float
    sums: NDArray[np.float64]
    scale: NDArray[np.float64]
    careful: NDArray[np.bool_]


# -- the mathematics of a run of elements ------------------------------------------------------------------------------

_ZERO, _ONE = np.float32(0), np.float32(1)


@elementwise
def second(f, g, beta2, new):
    """beta2 f + (1 - beta2) g^2; the square saturates, so that f / (1 - beta2^t) stays in range."""
    return limited(beta2 * f + new * limited(g * g, LARGEST), LARGEST)


@elementwise
def update(m, f, of_m, of_f, eps):
    """u = (m / (1 - beta1^t)) / (sqrt(f / (1 - beta2^t)) + eps), and 0 where that denominator is 0 (SPEC D5)."""
    fhat = of_f * f
    d = np.float32(math.sqrt(LARGEST if fhat > LARGEST else fhat)) + eps
    return limited(of_m * m * (_ONE / d if d != _ZERO else _ZERO), LARGEST)


@summing
def sum_u(g, f, m, has_m, i, end, beta1, share, beta2, new, of_m, of_f, eps):
    """Sum of u^2, fast."""
    u2 = _ZERO
    for j in range(i, end):
        x = load(g, j)
        m_j = beta1 * load(m, j) + share * x if has_m else x
        u = update(m_j, second(load(f, j), x, beta2, new), of_m, of_f, eps)
        u2 += u * u
    return np.float64(u2)


@elementwise
def careful_update(g, f, m, beta1, share, beta2, new, of_m, of_f, eps):
    """m, f and u in float64; m and f are rounded to what float32 can hold."""
    m = np.float64(np.float32(limited(beta1 * m + share * g, np.float64(LARGEST))))
    f = np.float64(np.float32(limited(beta2 * f + new * limited(g * g, np.float64(LARGEST)), np.float64(LARGEST))))
    d = math.sqrt(of_f * f) + eps
    return m, f, limited(of_m * m / d, np.float64(LARGEST)) if d != 0.0 else 0.0


@elementwise
def sum_careful(g, f, m, has_m, i, end, beta1, share, beta2, new, of_m, of_f, eps):
    """Sum of u^2."""
    u2 = 0.0
    for j in range(i, end):
        m_j = np.float64(load(m, j)) if has_m else 0.0
        x = np.float64(load(g, j))
        _, _, u = careful_update(x, np.float64(load(f, j)), m_j, beta1, share, beta2, new, of_m, of_f, eps)
        u2 += u * u
    return u2


@elementwise
def move(p, g, f, m, has_m, i, end, beta1, share, beta2, new, of_m, of_f, eps, of_u, of_p, key_p, key_f, key_m):
    """The step; ``of_u``: eta times the clip; ``of_p``: eta lambda."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        m_j = x
        if has_m:
            m_j = beta1 * load(m, j) + share * x
            keep(m, j, m_j, key_m)
        f_j = second(load(f, j), x, beta2, new)
        keep(f, j, f_j, key_f)
        keep(p, j, theta - (of_u * update(m_j, f_j, of_m, of_f, eps) + of_p * theta), key_p)


@elementwise
def move_carefully(
    p, g, f, m, has_m, i, end, beta1, share, beta2, new, of_m, of_f, eps, of_u, of_p, key_p, key_f, key_m
):
    """`move` in float64."""
    for j in range(i, end):
        x, theta = np.float64(load(g, j)), np.float64(load(p, j))
        m_j = np.float64(load(m, j)) if has_m else 0.0
        m_j, f_j, u = careful_update(x, np.float64(load(f, j)), m_j, beta1, share, beta2, new, of_m, of_f, eps)
        if has_m:
            keep(m, j, np.float32(m_j), key_m)
        keep(f, j, np.float32(f_j), key_f)
        keep(p, j, np.float32(limited(theta - (of_u * u + of_p * theta), np.float64(LARGEST))), key_p)


# -- the phases of a step ----------------------------------------------------------------------------------------------

_AHEAD = 512
_SAFE = 1e30  # a sum of squares below it had no term that left the range


@elementwise
def coefficients(job, step):
    """(beta1, 1 - beta1, beta2, 1 - beta2, 1/(1 - beta1^t), 1/(1 - beta2^t)); without momentum m is g."""
    of_f = 1.0 / (1.0 - job.beta2**step)
    if job.m.address.size == 0:
        return 0.0, 1.0, job.beta2, 1.0 - job.beta2, 1.0, of_f
    return job.beta1, 1.0 - job.beta1, job.beta2, 1.0 - job.beta2, 1.0 / (1.0 - job.beta1**step), of_f


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    if job.clip == math.inf:
        return
    t = plan.tensor[chunk]
    has_m = job.m.address.size > 0
    b1, s1, b2, s2, of_m, of_f = coefficients(job, load_step(job.step[t]))
    b1_, s1_, b2_, s2_ = np.float32(b1), np.float32(s1), np.float32(b2), np.float32(s2)
    of_m_, of_f_, eps = np.float32(of_m), np.float32(of_f), np.float32(job.eps)
    careful = 0.0 < job.eps < SMALL
    u2 = 0.0
    i, stop = plan.start[chunk], plan.stop[chunk]
    g = open_(job.g, t, i, stop, None)
    room_f, room_m = room(job.f), room(job.m)
    while i < stop:
        end = min(i + BLOCK, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        ahead(job.g, t, soon, later)
        ahead(job.f, t, soon, later)
        if has_m:
            ahead(job.m, t, soon, later)
        f, m = open_(job.f, t, i, end, room_f), open_(job.m, t, i, end, room_m)
        x = math.inf
        if not careful:
            x = sum_u(g, f, m, has_m, i, end, b1_, s1_, b2_, s2_, of_m_, of_f_, eps)
        if not x < _SAFE:
            x = sum_careful(g, f, m, has_m, i, end, b1, s1, b2, s2, of_m, of_f, job.eps)
        u2 += x
        i = end
    job.sums[chunk, 0] = u2


@implements(resolve, Job)
def _resolve(job, plan, t, again):
    job.scale[t] = 1.0
    if job.clip < math.inf:
        first, last = plan.first_chunk[t], plan.first_chunk[t] + plan.chunks[t]
        job.scale[t] = shrink(rms(total(job.sums, first, last, 0), job.size[t]), job.clip)
    job.careful[t] = 0.0 < job.eps < SMALL or job.scale[t] < SMALL
    return False


@implements(apply, Job)
def _apply(job, plan, chunk):
    t = plan.tensor[chunk]
    step = load_step(job.step[t])
    has_m = job.m.address.size > 0
    b1, s1, b2, s2, of_m, of_f = coefficients(job, step)
    of_u, of_p = job.lr * job.scale[t], job.lr * job.weight_decay
    b1_, s1_, b2_, s2_ = np.float32(b1), np.float32(s1), np.float32(b2), np.float32(s2)
    of_m_, of_f_, eps = np.float32(of_m), np.float32(of_f), np.float32(job.eps)
    of_u_, of_p_ = np.float32(of_u), np.float32(of_p)
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
        if has_m:
            ahead(job.m, t, soon, later)
        f, m = open_(job.f, t, i, end, room_f), open_(job.m, t, i, end, room_m)
        if job.careful[t]:
            args = (b1, s1, b2, s2, of_m, of_f, job.eps, of_u, of_p, key_p, key_f, key_m)
            move_carefully(p, g, f, m, has_m, i, end, *args)
        else:
            args_ = (b1_, s1_, b2_, s2_, of_m_, of_f_, eps, of_u_, of_p_, key_p, key_f, key_m)
            move(p, g, f, m, has_m, i, end, *args_)
        close(job.f, t, i, end, room_f, key_f)
        if has_m:
            close(job.m, t, i, end, room_m, key_m)
        i = end


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(
    p: Tensor | Stored, g: Tensor, slots: Sequence[Tensor | Stored | None], options: Mapping[str, Any]
) -> str | None:
    """Why these tensors cannot be taken, or None."""
    return declined(p, g, slots)


def adam(
    p: Tensor | Stored,
    g: Tensor,
    step: Tensor,
    f: Tensor | Stored,
    m: Tensor | Stored | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adam` for one dense tensor, with its slots in its memory order."""
    adam_many((p,), (g,), (step,), (f,), (m,), lr=lr, betas=betas, eps=eps, clip=clip, weight_decay=weight_decay)


def adam_many(
    p: Sequence[Tensor | Stored],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    f: Sequence[Tensor | Stored],
    m: Sequence[Tensor | Stored | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adam` for many tensors, each with its slots in the memory order of p."""
    for mine in batches(p, f, m):
        sizes = tuple([size_of(p[i]) for i in mine])
        plan = plan_for(sizes)
        job = Job(
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
            clip=math.inf if clip is None else float(clip),
            weight_decay=float(weight_decay),
            sums=np.empty((plan.tensor.size, 1)),
            scale=np.empty(len(sizes)),
            careful=np.empty(len(sizes), np.bool_),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    touched(p)
