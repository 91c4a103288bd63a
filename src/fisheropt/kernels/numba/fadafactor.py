"""FAdafactor on the CPU: Algorithm 2 as three passes over memory. In plain PyTorch: `fisheropt.fadafactor`.

    gather           reads g; adds up the rows and columns of g^2                                        lines 7 and 8
    gather again     reads p and g; adds up gbar^2 and gw^2                                            lines 10 and 13
    apply            reads p, g and m, and writes p and m

f^rho = outer(R^rho, C^rho) / sum(R)^rho: powers are taken of n + k numbers, and an element costs a product and a
quotient.
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

__all__ = ["STORED", "fadafactor", "fadafactor_many", "supports"]

STORED = True

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Job(NamedTuple):
    """A step of FAdafactor.

    Attributes:
        p, g, m: the matrices; no m without momentum.
        R, C, step: addresses, of each matrix.
        n, k: rows and columns of each matrix.
        first_row, first_column: where the numbers of a matrix begin among those of all.
        rows: of each row, the sum of g^2.
        columns: of each chunk and column, the sum of g^2; ``first_sum`` says where those of a chunk begin.
        of_row, of_column: of each, the factor of f^rho.
        ehat: of each matrix, ehat^(2 rho).
        sums: of each chunk, the sums of gbar^2 and gw^2.
        scale: of each matrix, the factors of lines 10 and 13.
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
    eps2: float
    clip: float
    rho: float
    weight_decay: float
    rows: _Floats
    columns: _Floats
    of_row: NDArray[np.float32]
    of_column: NDArray[np.float32]
    ehat: _Floats
    sums: _Floats
    scale: _Floats
    careful: NDArray[np.bool_]


# -- the mathematics of a piece of a row -------------------------------------------------------------------------------

_ZERO, _ONE = np.float32(0), np.float32(1)
_GBAR2, _GW2 = range(2)


@summing
def add_squares(g, i, columns, j, length):
    """Add g^2 to the sums of columns; the sum over the row.                                            lines 7 and 8"""
    row = 0.0
    for c in range(length):
        x = np.float64(load(g, i + c))
        row += x * x
        columns[j + c] += x * x
    return row


@summing
def sum_both(p, g, i, of_row, of_column, j, length, ehat):
    """Sums of gbar^2 and gw^2, fast."""
    gbar2, gw2 = _ZERO, _ZERO
    for c in range(length):
        r = reciprocal(of_row, of_column[j + c], ehat)
        gbar = load(g, i + c) * r  # line 9
        gw = load(p, i + c) * r  # line 12
        gbar2 += gbar * gbar
        gw2 += gw * gw
    return np.float64(gbar2), np.float64(gw2)


@summing
def sum_gbar(g, i, of_row, of_column, j, length, ehat):
    """Sum of gbar^2, fast."""
    gbar2 = _ZERO
    for c in range(length):
        gbar = load(g, i + c) * reciprocal(of_row, of_column[j + c], ehat)  # line 9
        gbar2 += gbar * gbar
    return np.float64(gbar2)


@elementwise
def reciprocal(of_row, of_column, ehat):
    """1 / (f^rho + ehat^(2 rho)), and 0 where that is 0 (SPEC D5).                                 lines 9 and 12"""
    d = of_row * of_column + ehat
    return _ONE / d if d != _ZERO else _ZERO


@elementwise
def power(x, rho):
    """x^rho in float64, quickly where that is possible: one thread does this while the others wait."""
    return math.sqrt(x) if rho == 0.5 else x if rho == 1.0 else x**rho


@elementwise
def careful_quotients(p, g, share, C, rho, ehat):
    """gbar and gw before the clips, in float64; f is rounded to what float32 can hold."""
    f = np.float64(np.float32(share) * C)
    d = power(f, rho) + ehat
    if d == 0.0:
        return 0.0, 0.0
    return limited(g / d, np.float64(LARGEST)), limited(p / d, np.float64(LARGEST))


@elementwise
def sum_careful(p, g, i, share, C, j, length, rho, ehat):
    """Sums of gbar^2 and gw^2."""
    gbar2, gw2 = 0.0, 0.0
    for c in range(length):
        x, theta = np.float64(load(g, i + c)), np.float64(load(p, i + c))
        gbar, gw = careful_quotients(theta, x, share, C[j + c], rho, ehat)
        gbar2 += gbar * gbar
        gw2 += gw * gw
    return gbar2, gw2


@elementwise
def move(p, g, m, i, of_row, of_column, j, length, ehat, beta1, of_gbar, lr, of_gw, key_p, key_m):
    """Lines 9 to 14; ``of_gbar``: (1 - beta1) times the clip of line 10; ``of_gw``: eta lambda times that of 13."""
    for c in range(length):
        r = reciprocal(of_row, of_column[j + c], ehat)
        theta = load(p, i + c)
        m_c = beta1 * load(m, i + c) + of_gbar * limited(load(g, i + c) * r, LARGEST)  # lines 9 to 11
        keep(m, i + c, m_c, key_m)
        keep(p, i + c, theta - (lr * m_c + of_gw * limited(theta * r, LARGEST)), key_p)  # lines 12 to 14


@elementwise
def move_without_momentum(p, g, i, of_row, of_column, j, length, ehat, of_gbar, lr, of_gw, key_p):
    """`move` with m = gbar."""
    for c in range(length):
        r = reciprocal(of_row, of_column[j + c], ehat)
        theta = load(p, i + c)
        gbar = of_gbar * limited(load(g, i + c) * r, LARGEST)
        keep(p, i + c, theta - (lr * gbar + of_gw * limited(theta * r, LARGEST)), key_p)


@elementwise
def move_carefully(p, g, m, has_m, i, share, C, j, length, rho, ehat, beta1, of_gbar, lr, of_gw, key_p, key_m):
    """`move`, or `move_without_momentum`, in float64."""
    for c in range(length):
        theta = np.float64(load(p, i + c))
        gbar, gw = careful_quotients(theta, np.float64(load(g, i + c)), share, C[j + c], rho, ehat)
        m_c = of_gbar * gbar
        if has_m:
            m_c += beta1 * np.float64(load(m, i + c))
            keep(m, i + c, np.float32(limited(m_c, np.float64(LARGEST))), key_m)
        keep(p, i + c, np.float32(limited(theta - (lr * m_c + of_gw * gw), np.float64(LARGEST))), key_p)


# -- the phases of a step ----------------------------------------------------------------------------------------------

_RUN = 2 * BLOCK  # elements of a row that are summed in float32
_AHEAD = 512
_SAFE = 1e30  # a sum of squares below it had no term that left the range


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    t = plan.tensor[chunk]
    k = job.k[t]
    p, g = open_(job.p, t, 0, 0, None), open_(job.g, t, 0, 0, None)
    C = pointer(job.C[t], _ZERO)
    columns, of_column = pointer(job.columns.ctypes.data, 0.0), pointer(job.of_column.ctypes.data, _ZERO)
    e = np.float32(job.ehat[t])
    gbar2, gw2 = 0.0, 0.0
    first_row = plan.start[chunk] // k
    if not again:
        job.columns[job.first_sum[chunk] : job.first_sum[chunk] + k] = 0.0
    for row in range(first_row, plan.stop[chunk] // k):
        squares = 0.0
        at = job.first_row[t] + row
        j = 0
        while j < k:
            length = min(_RUN, k - j)
            i = row * k + j
            soon = min(i + _AHEAD, plan.stop[chunk])
            later = min(soon + length, plan.stop[chunk])
            ahead(job.g, t, soon, later)
            if not again:
                squares += add_squares(g, i, columns, job.first_sum[chunk] + j, length)
            else:
                column = job.first_column[t] + j
                x, y = math.inf, 0.0
                if not job.careful[t]:
                    if job.weight_decay != 0.0:
                        ahead(job.p, t, soon, later)
                        x, y = sum_both(p, g, i, job.of_row[at], of_column, column, length, e)
                    else:
                        x = sum_gbar(g, i, job.of_row[at], of_column, column, length, e)
                if not (x < _SAFE and y < _SAFE):
                    x, y = sum_careful(p, g, i, job.rows[at], C, j, length, job.rho, job.ehat[t])
                gbar2 += x
                gw2 += y
            j += length
        if not again:
            job.rows[at] = squares
    job.sums[chunk, _GBAR2] = gbar2
    job.sums[chunk, _GW2] = gw2


@implements(resolve, Job)
def _resolve(job, plan, t, again):
    first, last = plan.first_chunk[t], plan.first_chunk[t] + plan.chunks[t]
    n, k = job.n[t], job.k[t]
    if not again:
        factor(job, t, first, last)
        if job.clip < math.inf:
            return True
    of_gbar, of_gw = 1.0, 1.0
    if job.clip < math.inf:
        of_gbar = shrink(rms(total(job.sums, first, last, _GBAR2), n * k), job.clip)  # line 10
        of_gw = shrink(rms(total(job.sums, first, last, _GW2), n * k), job.clip)  # line 13
    job.scale[t, 0] = of_gbar
    job.scale[t, 1] = of_gw
    job.careful[t] |= of_gbar < SMALL or of_gw < SMALL
    return False


@elementwise
def factor(job, t, first, last):
    """R and C, ehat and the factors of f^rho; in ``job.rows`` the shares of the rows.                   lines 7 to 9"""
    n, k, row, column = job.n[t], job.k[t], job.first_row[t], job.first_column[t]
    R, C = pointer(job.R[t], _ZERO), pointer(job.C[t], _ZERO)
    b2hat, new = debiased(job.beta2, load_step(job.step[t]))
    squares, sum_R = 0.0, 0.0
    for i in range(n):
        squares += job.rows[row + i]
        R[i] = np.float32(limited(b2hat * R[i] + new * job.rows[row + i], np.float64(LARGEST)))  # line 7
        sum_R += R[i]
    columns = job.columns[job.first_sum[first] : job.first_sum[first] + k]
    for chunk in range(first + 1, last):
        columns += job.columns[job.first_sum[chunk] : job.first_sum[chunk] + k]
    for j in range(k):
        C[j] = np.float32(limited(b2hat * C[j] + new * columns[j], np.float64(LARGEST)))  # line 8
        job.of_column[column + j] = np.float32(power(np.float64(C[j]), job.rho))
    for i in range(n):
        share = R[i] / sum_R if sum_R != 0.0 else 0.0  # SPEC D11
        job.rows[row + i] = share
        job.of_row[row + i] = np.float32(power(share, job.rho))
    ehat = job.eps
    if job.eps2 < math.inf:
        bound = job.eps2 * rms(squares, n * k)
        ehat = job.eps if bound >= job.eps else bound  # line 8; NaN stays NaN
    job.ehat[t] = ehat ** (2.0 * job.rho)
    job.careful[t] = job.ehat[t] < SMALL


@implements(apply, Job)
def _apply(job, plan, chunk):
    t = plan.tensor[chunk]
    k, step = job.k[t], load_step(job.step[t])
    has_m = job.m.address.size > 0
    of_gbar = job.scale[t, 0] * (1.0 - job.beta1 if has_m else 1.0)
    of_gw = job.scale[t, 1] * job.lr * job.weight_decay
    ehat, beta1, lr = job.ehat[t], job.beta1, job.lr
    e, beta1_, lr_ = np.float32(ehat), np.float32(beta1), np.float32(lr)
    of_gbar_, of_gw_ = np.float32(of_gbar), np.float32(of_gw)
    key_p, key_m = key_of(job.p.salt, step), key_of(job.m.salt, step)
    p, g, C = open_(job.p, t, 0, 0, None), open_(job.g, t, 0, 0, None), pointer(job.C[t], _ZERO)
    of_column = pointer(job.of_column.ctypes.data, _ZERO)  # an array might be indexed from its end, and not vectorise
    room_m = room(job.m)
    for row in range(plan.start[chunk] // k, plan.stop[chunk] // k):
        at = job.first_row[t] + row
        of_row, share = job.of_row[at], job.rows[at]
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
                args = (job.rho, ehat, beta1, of_gbar, lr, of_gw, key_p, key_m)
                move_carefully(p, g, m, has_m, i, share, C, j, length, *args)
            elif has_m:
                args_ = (e, beta1_, of_gbar_, lr_, of_gw_, key_p, key_m)
                move(p, g, m, i, of_row, of_column, column, length, *args_)
            else:
                move_without_momentum(p, g, i, of_row, of_column, column, length, e, of_gbar_, lr_, of_gw_, key_p)
            if has_m:
                close(job.m, t, i, i + length, room_m, key_m)
            j += length


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(
    p: Tensor | Stored, g: Tensor, slots: Sequence[Tensor | Stored | None], options: Mapping[str, Any]
) -> str | None:
    """Why these tensors cannot be taken, or None."""
    if (reason := declined(p, g, slots) or matrices_declined(p, g, slots)) is not None:
        return reason
    if options["rho"] > 1.0:
        return "rho > 1 leaves the range of float32"
    return None


def matrices_declined(p: Tensor | Stored, g: Tensor, slots: Sequence[Tensor | Stored | None]) -> str | None:
    """Why kernels for matrices do not take tensors of these shapes, or None."""
    tensors = [x.values if isinstance(x, Stored) else x for x in (p, g, *slots) if x is not None]
    if g.ndim != 2:
        return f"it takes matrices, not tensors of {g.ndim} dimensions"
    if not all(x.is_contiguous() for x in tensors):
        return "it takes contiguous matrices"
    if g.shape[1] % BLOCK and any(isinstance(x, Stored) and x.scale is not None for x in slots):
        return f"8-bit state of rows that are no multiple of {BLOCK}"
    return None


def fadafactor(
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
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """`fisheropt.fadafactor.fadafactor` for one contiguous matrix."""
    options: dict[str, Any] = {"eps": eps, "eps2": eps2, "clip": clip, "rho": rho, "weight_decay": weight_decay}
    fadafactor_many((p,), (g,), (step,), (R,), (C,), (m,), lr=lr, betas=betas, **options)


def fadafactor_many(
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
    eps2: float | None,
    clip: float | None,
    rho: float,
    weight_decay: float,
) -> None:
    """`fisheropt.fadafactor.fadafactor` for many contiguous matrices."""
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
            eps2=math.inf if eps2 is None else float(eps2),
            clip=math.inf if clip is None else float(clip),
            rho=float(rho),
            weight_decay=float(weight_decay),
            rows=np.empty(n.sum()),
            columns=np.empty(lengths.sum()),
            of_row=np.empty(n.sum(), np.float32),
            of_column=np.empty(k.sum(), np.float32),
            ehat=np.zeros(len(mine)),
            sums=np.empty((plan.tensor.size, 2)),
            scale=np.empty((len(mine), 2)),
            careful=np.zeros(len(mine), np.bool_),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    touched(p)
