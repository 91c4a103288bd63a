"""AdaFisher on the CPU: one pass over memory, in which F is never more than a few numbers. In plain PyTorch:
`fisheropt.adafisher`.

apply     reads p, g and m, forms F = S' outer H' + lambda from the two factors, and writes p and m

There are no statistics of whole tensors, so `gather` and `resolve` have nothing to do. A tensor is seen as a matrix
whose row i has the number ``outer[i]`` and the vector ``inner``: a weight has a number per output and a vector of
inputs, which is another one for each row where a convolution has groups. What has one number per element (a bias, a
norm, a bare parameter) is a matrix of one row, and so is anything whose other factor is a single number.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisheropt.kernels.numba._compile import elementwise
from fisheropt.kernels.numba._engine import apply, control_for, gather, implements, resolve, work
from fisheropt.kernels.numba._job import addresses, load_step, number, wrong_dtype
from fisheropt.kernels.numba._memory import TAGS, load, pointer, prefetch, store, width
from fisheropt.kernels.numba._metric import LARGEST, limited
from fisheropt.kernels.numba._plan import plan_for
from fisheropt.kernels.numba._team import together

__all__ = ["adafisher", "adafisher_many", "supports"]

_Integers = NDArray[np.int64]


class Job(NamedTuple):
    """A step of AdaFisher or AdaFisherW.

    Attributes:
        tag: stands for the dtype of p and g (`_memory.TAGS`).
        p, g, m, step: addresses of each tensor; m is empty without momentum.
        outer, inner: addresses of the factors of each tensor, (layers, n) and (layers, ``length``), float32.
        n, k: rows and columns of each tensor seen as a matrix.
        layers: how many share it.
        length: numbers in ``inner`` per layer, k or n k.
        lr, beta, damping: eta, beta, lambda.
        coupled, decay: kappa in the gradient, or eta kappa beside it; the other one is 0.
        sums: a run of F - lambda for each chunk, where a tensor has several layers.
    """

    tag: Any
    p: _Integers
    g: _Integers
    m: _Integers
    step: _Integers
    outer: _Integers
    inner: _Integers
    n: _Integers
    k: _Integers
    layers: _Integers
    length: _Integers
    lr: float
    beta: float
    damping: float
    coupled: float
    decay: float
    sums: NDArray[np.float32]


# -- the mathematics of a piece of a row -------------------------------------------------------------------------------

_ZERO, _ONE = np.float32(0), np.float32(1)


@elementwise
def move(p, g, m, has_m, i, outer, inner, j, length, damping, coupled, beta, new, eta, decay):
    """The step: g, m and theta of Algorithm 1."""
    for c in range(length):
        theta = load(p, i + c)
        F = outer * inner[j + c] + damping
        x = load(g, i + c) + coupled * theta
        if has_m:
            x = beta * m[i + c] + new * x
            m[i + c] = x
        store(p, i + c, theta - (eta * limited(x / F, LARGEST) + decay * theta))


@elementwise
def add_layer(total, outer, inner, j, length, first):
    """Add S' outer H' of one layer to what others have brought (SPEC D18)."""
    for c in range(length):
        one = outer * inner[j + c]
        total[c] = one if first else total[c] + one


# -- the phases of a step ----------------------------------------------------------------------------------------------

_RUN = 256  # elements of a row in one go
_AHEAD = 512


@implements(gather, Job)
def _gather(job, plan, chunk, again):
    return


@implements(resolve, Job)
def _resolve(job, plan, t, again):
    return False


@implements(apply, Job)
def _apply(job, plan, chunk):
    t = plan.tensor[chunk]
    n, k, layers, per_layer = job.n[t], job.k[t], job.layers[t], job.length[t]
    has_m = job.m.size > 0
    p, g = pointer(job.p[t], job.tag), pointer(job.g[t], job.tag)
    outer, inner = pointer(job.outer[t], _ZERO), pointer(job.inner[t], _ZERO)
    m = pointer(job.m[t] if has_m else job.inner[t], _ZERO)
    damping, coupled, decay = np.float32(job.damping), np.float32(job.coupled), np.float32(job.decay)
    beta, new = np.float32(job.beta), np.float32(1.0 - job.beta)
    eta = np.float32(job.lr / (1.0 - job.beta ** load_step(job.step[t])))  # the correction that makes m mhat
    size = width(job.tag)
    i, stop = plan.start[chunk], plan.stop[chunk]
    while i < stop:
        row = i // k
        j = i - row * k
        length = min(_RUN, k - j, stop - i)
        soon = min(i + _AHEAD, stop)
        later = min(soon + length, stop)
        prefetch(job.p[t], size * soon, size * later)
        prefetch(job.g[t], size * soon, size * later)
        if has_m:
            prefetch(job.m[t], 4 * soon, 4 * later)
        at = row * k + j if per_layer > k else j
        if layers == 1:
            move(p, g, m, has_m, i, outer[row], inner, at, length, damping, coupled, beta, new, eta, decay)
        else:
            total = pointer(job.sums.ctypes.data + 4 * _RUN * chunk, _ZERO)
            for layer in range(layers):
                add_layer(total, outer[layer * n + row], inner, layer * per_layer + at, length, layer == 0)
            move(p, g, m, has_m, i, _ONE, total, 0, length, damping, coupled, beta, new, eta, decay)
        i += length


# -- the leaf ----------------------------------------------------------------------------------------------------------


def supports(p: Tensor, g: Tensor, slots: Sequence[Tensor | None], options: Mapping[str, Any]) -> str | None:
    """Why these tensors cannot be taken, or None. ``slots``: m alone; the factors are always what they should be."""
    if (reason := wrong_dtype(p, g, slots)) is not None:
        return reason
    if not all(x.is_contiguous() for x in (p, g, *slots) if x is not None):
        return "it takes contiguous tensors"
    return None


def adafisher(
    p: Tensor,
    g: Tensor,
    step: Tensor,
    m: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    *,
    lr: float | Tensor,
    beta: float,
    damping: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """`fisheropt.adafisher.adafisher` for one contiguous tensor."""
    options: dict[str, Any] = {"damping": damping, "weight_decay": weight_decay, "decoupled": decoupled}
    adafisher_many((p,), (g,), (step,), (m,), (rows,), (columns,), lr=lr, beta=beta, **options)


def adafisher_many(
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    step: Sequence[Tensor],
    m: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta: float,
    damping: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """`fisheropt.adafisher.adafisher` for many contiguous tensors of any of the dtypes.

    Args:
        rows, columns: (layers, ...), float32, whose product broadcasts to (layers, *p.shape): one of them a single
            number per layer, or ``rows`` one number per element of p's first dimension.
    """
    eta = number(lr)
    for dtype in {x.dtype for x in p}:
        mine = [i for i, x in enumerate(p) if x.dtype == dtype]
        matrices = [_matrix(p[i], rows[i], columns[i]) for i in mine]  # holds what the addresses are of
        n = np.array([outer.shape[1] for outer, _ in matrices], np.int64)
        sizes = np.array([p[i].numel() for i in mine], np.int64)
        layers = np.array([outer.shape[0] for outer, _ in matrices], np.int64)
        units = np.where(n > 1, sizes // n, 1)  # a single row may be cut anywhere
        plan = plan_for(tuple(sizes.tolist()), units=tuple(units.tolist()))
        job = Job(
            tag=TAGS[dtype],
            p=addresses(p, mine),
            g=addresses(g, mine),
            m=addresses(m, mine),
            step=addresses(step, mine),
            outer=np.array([outer.data_ptr() for outer, _ in matrices], np.int64),
            inner=np.array([inner.data_ptr() for _, inner in matrices], np.int64),
            n=n,
            k=sizes // n,
            layers=layers,
            length=np.array([inner.shape[1] for _, inner in matrices], np.int64),
            lr=eta,
            beta=float(beta),
            damping=float(damping),
            coupled=0.0 if decoupled else float(weight_decay),
            decay=eta * weight_decay if decoupled else 0.0,
            sums=np.empty((plan.tensor.size if layers.max() > 1 else 0, _RUN), np.float32),
        )
        together(work, (plan, control_for(plan), job), most=plan.item.size - 1)
    torch.autograd.graph.increment_version(p)


def _matrix(p: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of p as a matrix: (layers, n) and (layers, k or n k), both contiguous."""
    layers = rows.shape[0]
    if columns.numel() == layers:  # one row, whose number is in the columns
        return columns.reshape(layers, 1).contiguous(), rows.reshape(layers, -1).contiguous()
    return rows.reshape(layers, -1).contiguous(), columns.reshape(layers, -1).contiguous()
