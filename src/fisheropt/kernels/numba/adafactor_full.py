"""Adafactor on the CPU for tensors that are not factored: two passes. Plain: `fisheropt.baselines.adafactor_full`.

gather    reads g and f; adds up u^2; changes nothing. Without a clip it is skipped
apply     reads p, g, f and m, works out u once more, and writes p, f and m

The loops are compiled twice, for float32 and for float64, which their scalars choose. A root of a float32 is above
1e-23, so quotients are only out of range where they saturate; float64 is for sums that overflow and vanishing factors.
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
from fisheropt.kernels.numba._metric import LARGEST, SMALL, debiased, limited, rms, shrink
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together

__all__ = ["STORED", "adafactor_full", "adafactor_full_many", "supports"]

STORED = True

_Integers = NDArray[np.int64]


class Job(NamedTuple):
    """A step of Adafactor.

    Attributes:
        p, g, f, m: the tensors; no m without momentum.
        step, size: of each, the address of t and the number of elements.
        sums: of each chunk, the sum of u^2.
        scale: of each tensor, the factor of the clip.
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


# -- the mathematics of a run of elements ------------------------------------------------------------------------------

_ZERO, _ONE = np.float32(0), np.float32(1)


@elementwise
def second(f, g, b2hat, new, eps):
    """b2hat f + (1 - b2hat) (g^2 + eps), saturating."""
    return limited(b2hat * f + new * (limited(g * g, LARGEST) + eps), LARGEST)


@elementwise
def update(g, f):
    """u = g / sqrt(f), and 0 where f is 0 (SPEC D5)."""
    d = math.sqrt(f)
    return limited(g * (_ONE / d), LARGEST) if d != _ZERO else d


@summing
def sum_u(g, f, i, end, b2hat, new, eps):
    """Sum of u^2."""
    u2 = _ZERO
    for j in range(i, end):
        x = load(g, j)
        u = update(x, second(load(f, j), x, b2hat, new, eps))
        u2 += u * u
    return np.float64(u2)


@elementwise
def move(p, g, f, m, has_m, i, end, b2hat, new, eps, beta1, of_u, decay, key_p, key_f, key_m):
    """The step; ``of_u``: eta times the clip, and with momentum times 1 - beta1."""
    for j in range(i, end):
        x, theta = load(g, j), load(p, j)
        f_j = second(load(f, j), x, b2hat, new, eps)
        m_j = of_u * update(x, f_j)
        if has_m:
            m_j += beta1 * load(m, j)
            keep(m, j, np.float32(m_j), key_m)
        keep(f, j, np.float32(f_j), key_f)
        keep(p, j, np.float32(limited(theta - (m_j + decay * theta), LARGEST)), key_p)


# -- the phases of a step ----------------------------------------------------------------------------------------------

_AHEAD = 512
_SAFE = 1e30  # a sum of squares below it had no term that left the range


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    if job.clip == math.inf:
        return
    t = plan.tensor[chunk]
    b2hat, new = debiased(job.beta2, load_step(job.step[t]))
    b2hat_, new_, eps_ = np.float32(b2hat), np.float32(new), np.float32(job.eps)
    u2 = 0.0
    i, stop = plan.start[chunk], plan.stop[chunk]
    g = open_(job.g, t, i, stop, None)
    room_f = room(job.f)
    while i < stop:
        end = min(i + BLOCK, stop)
        soon, later = min(i + _AHEAD, stop), min(end + _AHEAD, stop)
        ahead(job.g, t, soon, later)
        ahead(job.f, t, soon, later)
        f = open_(job.f, t, i, end, room_f)
        x = sum_u(g, f, i, end, b2hat_, new_, eps_)
        u2 += x if x < _SAFE else sum_u(g, f, i, end, b2hat, new, job.eps)
        i = end
    job.sums[chunk] = u2


@implements(resolve, Job)
def _resolve(job, plan, t, again):
    job.scale[t] = 1.0
    if job.clip < math.inf:
        sums = job.sums[plan.first_chunk[t] : plan.first_chunk[t] + plan.chunks[t]]
        job.scale[t] = shrink(rms(total(sums.reshape(-1, 1), 0, sums.size, 0), job.size[t]), job.clip)
    return False


@implements(apply, Job)
def _apply(job, plan, chunk):
    t = plan.tensor[chunk]
    step = load_step(job.step[t])
    has_m = job.m.address.size > 0
    b2hat, new = debiased(job.beta2, step)
    of_u = job.lr * job.scale[t] * (1.0 - job.beta1 if has_m else 1.0)
    key_p, key_f, key_m = key_of(job.p.salt, step), key_of(job.f.salt, step), key_of(job.m.salt, step)
    keys = (key_p, key_f, key_m)
    wide = (b2hat, new, job.eps, job.beta1, of_u, job.weight_decay)
    fast = (np.float32(b2hat), np.float32(new), np.float32(job.eps), np.float32(job.beta1))
    faster = (np.float32(of_u), np.float32(job.weight_decay))
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
        if job.scale[t] < SMALL:
            move(p, g, f, m, has_m, i, end, *wide, *keys)
        else:
            move(p, g, f, m, has_m, i, end, *fast, *faster, *keys)
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


def adafactor_full(
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
    """`fisheropt.baselines.adafactor_full` for one dense tensor, with its slots in its memory order."""
    options: dict[str, Any] = {"eps": eps, "clip": clip, "weight_decay": weight_decay}
    adafactor_full_many((p,), (g,), (step,), (f,), (m,), lr=lr, betas=betas, **options)


def adafactor_full_many(
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
    """`fisheropt.baselines.adafactor_full` for many tensors, each with its slots in the memory order of p."""
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
            sums=np.empty(plan.tensor.size),
            scale=np.empty(len(sizes)),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    touched(p)
