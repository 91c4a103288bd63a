"""Adafactor on the CPU: three passes, as `fadafactor`. In plain PyTorch: `fisheropt.baselines.adafactor`.

gather           reads g; adds up the rows and columns of g^2
gather again     reads g; adds up u^2. Without a clip it is skipped
apply            reads p, g and m, and writes p and m
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
from fisheropt.kernels.numba._kept import BLOCK, Kept, ahead, batches, close, kept, open_, room
from fisheropt.kernels.numba._memory import keep, key_of, load, pointer
from fisheropt.kernels.numba._metric import LARGEST, SMALL, debiased, limited, rms, shrink
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together
from fisheropt.kernels.numba.fadafactor import add_squares, matrices_declined

__all__ = ["STORED", "adafactor", "adafactor_many", "supports"]

STORED = True

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Job(NamedTuple):
    """A step of Adafactor.

    Attributes:
        p, g, m: the matrices; no m without momentum.
        R, C, step: addresses, of each matrix.
        n, k: rows and columns of each matrix.
        first_row, first_column: where the numbers of a matrix begin among those of all.
        rows: of each row, the sum of g^2.
        columns: of each chunk and column, the sum of g^2; ``first_sum`` says where those of a chunk begin.
        share: of each row, its share of sum(R).
        of_row, of_column: of each, the factor of sqrt(f).
        sums: of each chunk, the sum of u^2.
        scale: of each matrix, the factor of the clip.
        careful: of each matrix, whether its numbers need float64.
    """

    p: Kept
    g: Kept
    m: Kept
    R: _Integers
    C: _Integers
    step: _Integers
    n: _Integers
    k: _Integers
    first_row: _Integers
    first_column: _Integers
    first_sum: _Integers
    lr: float
    beta1: float
    beta2: float
    eps: float
    clip: float
    weight_decay: float
    rows: _Floats
    columns: _Floats
    share: NDArray[np.float32]
    of_row: NDArray[np.float32]
    of_column: NDArray[np.float32]
    sums: _Floats
    scale: _Floats
    careful: NDArray[np.bool_]


# -- the mathematics of a piece of a row -------------------------------------------------------------------------------

_ZERO, _ONE = np.float32(0), np.float32(1)


@elementwise
def update(g, of_row, of_column):
    """u = g / sqrt(f), and 0 where f is 0 (SPEC D5)."""
    d = of_row * of_column
    return limited(g * (_ONE / d if d != _ZERO else _ZERO), LARGEST)


@elementwise
def careful_update(g, share, C):
    """`update` in float64; f is rounded to what float32 can hold."""
    f = np.float64(share * C)
    return limited(np.float64(g) / math.sqrt(f), np.float64(LARGEST)) if f != 0.0 else 0.0


@summing
def sum_u(g, i, of_row, of_column, j, length):
    """Sum of u^2, fast."""
    u2 = _ZERO
    for c in range(length):
        u = update(load(g, i + c), of_row, of_column[j + c])
        u2 += u * u
    return np.float64(u2)


@elementwise
def sum_careful(g, i, share, C, j, length):
    """Sum of u^2."""
    u2 = 0.0
    for c in range(length):
        u = careful_update(load(g, i + c), share, C[j + c])
        u2 += u * u
    return u2


@elementwise
def move(p, g, m, has_m, i, of_row, of_column, j, length, beta1, of_u, decay, key_p, key_m):
    """The step; ``of_u``: eta times the clip, and with momentum times 1 - beta1."""
    for c in range(length):
        theta = load(p, i + c)
        m_c = of_u * update(load(g, i + c), of_row, of_column[j + c])
        if has_m:
            m_c += beta1 * load(m, i + c)
            keep(m, i + c, m_c, key_m)
        keep(p, i + c, limited(theta - (m_c + decay * theta), LARGEST), key_p)


@elementwise
def move_carefully(p, g, m, has_m, i, share, C, j, length, beta1, of_u, decay, key_p, key_m):
    """`move` in float64."""
    for c in range(length):
        theta = np.float64(load(p, i + c))
        m_c = of_u * careful_update(load(g, i + c), share, C[j + c])
        if has_m:
            m_c += beta1 * np.float64(load(m, i + c))
            keep(m, i + c, np.float32(limited(m_c, np.float64(LARGEST))), key_m)
        keep(p, i + c, np.float32(limited(theta - (m_c + decay * theta), np.float64(LARGEST))), key_p)


# -- the phases of a step ----------------------------------------------------------------------------------------------

_RUN = 2 * BLOCK  # elements of a row that are summed in float32
_AHEAD = 512
_SAFE = 1e30  # a sum of squares below it had no term that left the range
_SURE = 1e-34  # the smallest f whose rounding to float32 need not be looked at


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    t = plan.tensor[chunk]
    k, g, C = job.k[t], open_(job.g, t, 0, 0, None), pointer(job.C[t], _ZERO)
    columns, of_column = pointer(job.columns.ctypes.data, 0.0), pointer(job.of_column.ctypes.data, _ZERO)
    u2 = 0.0
    if not again:
        job.columns[job.first_sum[chunk] : job.first_sum[chunk] + k] = 0.0
    for row in range(plan.start[chunk] // k, plan.stop[chunk] // k):
        squares = 0.0
        at = job.first_row[t] + row
        j = 0
        while j < k:
            length = min(_RUN, k - j)
            i = row * k + j
            soon = min(i + _AHEAD, plan.stop[chunk])
            ahead(job.g, t, soon, min(soon + length, plan.stop[chunk]))
            if not again:
                squares += add_squares(g, i, columns, job.first_sum[chunk] + j, length)
            else:
                x = math.inf
                if not job.careful[t]:
                    x = sum_u(g, i, job.of_row[at], of_column, job.first_column[t] + j, length)
                u2 += x if x < _SAFE else sum_careful(g, i, job.share[at], C, j, length)
            j += length
        if not again:
            job.rows[at] = squares
    job.sums[chunk] = u2


@implements(resolve, Job)
def _resolve(job, plan, t, again):
    first, last = plan.first_chunk[t], plan.first_chunk[t] + plan.chunks[t]
    job.scale[t] = 1.0
    if not again:
        factor(job, t, first, last)
        return job.clip < math.inf
    sums = job.sums[first:last].reshape(-1, 1)
    job.scale[t] = shrink(rms(total(sums, 0, last - first, 0), job.n[t] * job.k[t]), job.clip)
    job.careful[t] |= job.scale[t] < SMALL
    return False


@elementwise
def factor(job, t, first, last):
    """R and C, and the factors of sqrt(f)."""
    n, k, row, column = job.n[t], job.k[t], job.first_row[t], job.first_column[t]
    R, C = pointer(job.R[t], _ZERO), pointer(job.C[t], _ZERO)
    b2hat, new = debiased(job.beta2, load_step(job.step[t]))
    sum_R = 0.0
    for i in range(n):
        of_row = job.rows[row + i] + k * job.eps
        R[i] = np.float32(limited(b2hat * R[i] + new * of_row, np.float64(LARGEST)))
        sum_R += R[i]
    columns = job.columns[job.first_sum[first] : job.first_sum[first] + k]
    for chunk in range(first + 1, last):
        columns += job.columns[job.first_sum[chunk] : job.first_sum[chunk] + k]
    least_C, least_share = math.inf, math.inf
    for j in range(k):
        C[j] = np.float32(limited(b2hat * C[j] + new * (columns[j] + n * job.eps), np.float64(LARGEST)))
        job.of_column[column + j] = np.float32(math.sqrt(np.float64(C[j])))
        least_C = min(least_C, np.float64(C[j]))
    for i in range(n):
        share = np.float32(R[i] / sum_R if sum_R != 0.0 else 0.0)  # SPEC D11
        job.share[row + i] = share
        job.of_row[row + i] = np.float32(math.sqrt(np.float64(share)))
        least_share = min(least_share, np.float64(share))
    job.careful[t] = not least_share * least_C > _SURE


@implements(apply, Job)
def _apply(job, plan, chunk):
    t = plan.tensor[chunk]
    k, step = job.k[t], load_step(job.step[t])
    has_m = job.m.address.size > 0
    beta1, decay = job.beta1, job.weight_decay
    of_u = job.lr * job.scale[t] * (1.0 - beta1 if has_m else 1.0)
    beta1_, of_u_, decay_ = np.float32(beta1), np.float32(of_u), np.float32(decay)
    key_p, key_m = key_of(job.p.salt, step), key_of(job.m.salt, step)
    p, g, C = open_(job.p, t, 0, 0, None), open_(job.g, t, 0, 0, None), pointer(job.C[t], _ZERO)
    of_column = pointer(job.of_column.ctypes.data, _ZERO)
    room_m = room(job.m)
    for row in range(plan.start[chunk] // k, plan.stop[chunk] // k):
        at = job.first_row[t] + row
        of_row, share = job.of_row[at], job.share[at]
        j = 0
        while j < k:
            length = min(_RUN, k - j)
            i, column = row * k + j, job.first_column[t] + j
            soon = min(i + _AHEAD, plan.stop[chunk])
            later = min(soon + length, plan.stop[chunk])
            ahead(job.p, t, soon, later)
            ahead(job.g, t, soon, later)
            if has_m:
                ahead(job.m, t, soon, later)
            m = open_(job.m, t, i, i + length, room_m)
            if job.careful[t]:
                move_carefully(p, g, m, has_m, i, share, C, j, length, beta1, of_u, decay, key_p, key_m)
            else:
                move(p, g, m, has_m, i, of_row, of_column, column, length, beta1_, of_u_, decay_, key_p, key_m)
            if has_m:
                close(job.m, t, i, i + length, room_m, key_m)
            j += length


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(
    p: Tensor | Stored, g: Tensor, slots: Sequence[Tensor | Stored | None], options: Mapping[str, Any]
) -> str | None:
    """Why these tensors cannot be taken, or None."""
    return declined(p, g, slots) or matrices_declined(p, g, slots)


def adafactor(
    p: Tensor | Stored,
    g: Tensor,
    step: Tensor,
    R: Tensor,
    C: Tensor,
    m: Tensor | Stored | None,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adafactor` for one contiguous matrix."""
    options: dict[str, Any] = {"eps": eps, "clip": clip, "weight_decay": weight_decay}
    adafactor_many((p,), (g,), (step,), (R,), (C,), (m,), lr=lr, betas=betas, **options)


def adafactor_many(
    p: Sequence[Tensor | Stored],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    R: Sequence[Tensor],
    C: Sequence[Tensor],
    m: Sequence[Tensor | Stored | None],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    clip: float | None,
    weight_decay: float,
) -> None:
    """`fisheropt.baselines.adafactor` for many contiguous matrices."""
    for mine in batches(p, m):
        shapes = np.array([g[i].shape for i in mine], np.int64)
        n, k = np.ascontiguousarray(shapes[:, 0]), np.ascontiguousarray(shapes[:, 1])
        plan = plan_for(tuple((n * k).tolist()), units=tuple(k.tolist()))
        lengths = k[plan.tensor]
        job = Job(
            p=kept(p, mine),
            g=kept(g, mine),
            m=kept(m, mine),
            R=addresses(R, mine),
            C=addresses(C, mine),
            step=addresses(step, mine),
            n=n,
            k=k,
            first_row=np.cumsum(n) - n,
            first_column=np.cumsum(k) - k,
            first_sum=np.cumsum(lengths) - lengths,
            lr=number(lr),
            beta1=float(betas[0]),
            beta2=float(betas[1]),
            eps=float(eps),
            clip=math.inf if clip is None else float(clip),
            weight_decay=float(weight_decay),
            rows=np.empty(n.sum()),
            columns=np.empty(lengths.sum()),
            share=np.empty(n.sum(), np.float32),
            of_row=np.empty(n.sum(), np.float32),
            of_column=np.empty(k.sum(), np.float32),
            sums=np.empty(plan.tensor.size),
            scale=np.empty(len(mine)),
            careful=np.zeros(len(mine), np.bool_),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    touched(p)
