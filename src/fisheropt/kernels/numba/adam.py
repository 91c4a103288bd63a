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
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels.numba._compile import elementwise, summing
from fisheropt.kernels.numba._engine import apply, control_for, gather, implements, resolve, work
from fisheropt.kernels.numba._job import addresses, load_step, number, total, wrong_dtype
from fisheropt.kernels.numba._memory import TAGS, load, pointer, prefetch, store, width
from fisheropt.kernels.numba._metric import LARGEST, SMALL, limited, rms, shrink
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together

__all__ = ["adam", "adam_many", "supports"]

_Integers = NDArray[np.int64]


class Job(NamedTuple):
    """A step of Adam.

    Attributes:
        tag: stands for the dtype of p and g (`_memory.TAGS`).
        p, g, f, m, step, size: addresses of each tensor, and its number of elements; m is empty without momentum.
        sums: of each chunk, the sum of u^2.
        scale: of each tensor, the factor of the clip.
        careful: of each tensor, whether its numbers need float64.
    """

    tag: Any
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
        m_j = beta1 * m[j] + share * x if has_m else x
        u = update(m_j, second(f[j], x, beta2, new), of_m, of_f, eps)
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
        m_j = np.float64(m[j]) if has_m else 0.0
        x = np.float64(load(g, j))
        _, _, u = careful_update(x, np.float64(f[j]), m_j, beta1, share, beta2, new, of_m, of_f, eps)
        u2 += u * u
    return u2


@elementwise
def move(p, g, f, m, has_m, i, end, beta1, share, beta2, new, of_m, of_f, eps, of_u, of_p):
    """The step; ``of_u``: eta times the clip; ``of_p``: eta lambda."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        m_j = x
        if has_m:
            m_j = beta1 * m[j] + share * x
            m[j] = m_j
        f_j = second(f[j], x, beta2, new)
        f[j] = f_j
        store(p, j, theta - (of_u * update(m_j, f_j, of_m, of_f, eps) + of_p * theta))


@elementwise
def move_carefully(p, g, f, m, has_m, i, end, beta1, share, beta2, new, of_m, of_f, eps, of_u, of_p):
    """`move` in float64."""
    for j in range(i, end):
        x, theta = np.float64(load(g, j)), np.float64(load(p, j))
        m_j = np.float64(m[j]) if has_m else 0.0
        m_j, f_j, u = careful_update(x, np.float64(f[j]), m_j, beta1, share, beta2, new, of_m, of_f, eps)
        if has_m:
            m[j] = np.float32(m_j)
        f[j] = np.float32(f_j)
        store(p, j, np.float32(limited(theta - (of_u * u + of_p * theta), np.float64(LARGEST))))


# -- the phases of a step ----------------------------------------------------------------------------------------------

_RUN = 128
_AHEAD = 512
_SAFE = 1e30  # a sum of squares below it had no term that left the range


@elementwise
def coefficients(job, t):
    """(beta1, 1 - beta1, beta2, 1 - beta2, 1/(1 - beta1^t), 1/(1 - beta2^t)); without momentum m is g."""
    step = load_step(job.step[t])
    of_f = 1.0 / (1.0 - job.beta2**step)
    if job.m.size == 0:
        return 0.0, 1.0, job.beta2, 1.0 - job.beta2, 1.0, of_f
    return job.beta1, 1.0 - job.beta1, job.beta2, 1.0 - job.beta2, 1.0 / (1.0 - job.beta1**step), of_f


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    if job.clip == math.inf:
        return
    t = plan.tensor[chunk]
    has_m = job.m.size > 0
    b1, s1, b2, s2, of_m, of_f = coefficients(job, t)
    g, f = pointer(job.g[t], job.tag), pointer(job.f[t], _ZERO)
    m = pointer(job.m[t] if has_m else job.f[t], _ZERO)
    b1_, s1_, b2_, s2_ = np.float32(b1), np.float32(s1), np.float32(b2), np.float32(s2)
    of_m_, of_f_, eps = np.float32(of_m), np.float32(of_f), np.float32(job.eps)
    careful = 0.0 < job.eps < SMALL
    size = width(job.tag)
    u2 = 0.0
    i, stop = plan.start[chunk], plan.stop[chunk]
    while i < stop:
        end = min(i + _RUN, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        prefetch(job.g[t], size * soon, size * later)
        prefetch(job.f[t], 4 * soon, 4 * later)
        if has_m:
            prefetch(job.m[t], 4 * soon, 4 * later)
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
    has_m = job.m.size > 0
    b1, s1, b2, s2, of_m, of_f = coefficients(job, t)
    of_u, of_p = job.lr * job.scale[t], job.lr * job.weight_decay
    p, g, f = pointer(job.p[t], job.tag), pointer(job.g[t], job.tag), pointer(job.f[t], _ZERO)
    m = pointer(job.m[t] if has_m else job.f[t], _ZERO)
    i, stop = plan.start[chunk], plan.stop[chunk]
    if job.careful[t]:
        move_carefully(p, g, f, m, has_m, i, stop, b1, s1, b2, s2, of_m, of_f, job.eps, of_u, of_p)
        return
    b1_, s1_, b2_, s2_ = np.float32(b1), np.float32(s1), np.float32(b2), np.float32(s2)
    of_m_, of_f_, eps = np.float32(of_m), np.float32(of_f), np.float32(job.eps)
    of_u_, of_p_ = np.float32(of_u), np.float32(of_p)
    size = width(job.tag)
    while i < stop:
        end = min(i + _RUN, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        prefetch(job.p[t], size * soon, size * later)
        prefetch(job.g[t], size * soon, size * later)
        prefetch(job.f[t], 4 * soon, 4 * later)
        if has_m:
            prefetch(job.m[t], 4 * soon, 4 * later)
        move(p, g, f, m, has_m, i, end, b1_, s1_, b2_, s2_, of_m_, of_f_, eps, of_u_, of_p_)
        i = end


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(p: Tensor, g: Tensor, slots: Sequence[Tensor | None], options: Mapping[str, Any]) -> str | None:
    """Why these tensors cannot be taken, or None."""
    return wrong_dtype(p, g, slots)


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
    """`fisheropt.baselines.adam` for one flat, contiguous tensor."""
    adam_many((p,), (g,), (step,), (f,), (m,), lr=lr, betas=betas, eps=eps, clip=clip, weight_decay=weight_decay)


def adam_many(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    f: Sequence[Tensor],
    m: Sequence[Tensor | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adam` for many flat, contiguous tensors of any of the dtypes."""
    for dtype in {x.dtype for x in p}:
        mine = [i for i, x in enumerate(p) if x.dtype == dtype]
        sizes = tuple(p[i].numel() for i in mine)
        plan = plan_for(sizes)
        job = Job(
            tag=TAGS[dtype],
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
            clip=math.inf if clip is None else float(clip),
            weight_decay=float(weight_decay),
            sums=np.empty((plan.tensor.size, 1)),
            scale=np.empty(len(sizes)),
            careful=np.empty(len(sizes), np.bool_),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    torch.autograd.graph.increment_version(p)
