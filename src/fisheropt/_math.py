"""The mathematics every rule shares: whole-tensor statistics, and arithmetic that stays finite at the edges of a dtype.

Pure functions of tensors; nothing here reads a value back to the host. The only whole-tensor reductions of the
library are in this file, so that there is one place to make them global when a tensor is sharded.

Two promises are kept here rather than in the rules:

* *Range.* No finite input gives a NaN or an infinity: sums of squares are taken relative to the largest element, and
  results beyond the largest finite number of their dtype saturate there (SPEC D5). NaN in, NaN out: nothing is hidden.
* *Bits.* On the CPU the same input gives the same bits for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisheropt._layout import flat
from fisheropt._shards import Role, Shards, each, each_pair, total

__all__ = [
    "bias_correction",
    "clip_by_norm_",
    "clip_by_rms_",
    "debiased",
    "l2_norms",
    "outer_fisher",
    "power",
    "quotient",
    "rms",
    "row_and_column_sums",
    "square",
]

_ROW = 1024  # elements summed in one go; short enough for float32, long enough to vectorise
_SERIAL = 32768  # torch's grain size: an elementwise kernel runs on one thread up to here
_SMALL = 2.0**-64  # keeps the sum of numbers near the largest one finite; exact, being a power of two
_ANY: tuple[Role, ...] = ("rows", "columns", "batch")


# -- scalars that depend on the step ----------------------------------------------------------------------------------


@each
def bias_correction(beta: float | Tensor, step: Tensor) -> Tensor:
    """``1 - beta^t`` in float64. ``step``: 0-d tensor, t >= 1. Returns a 0-d tensor."""
    return 1.0 - torch.pow(beta, step.double())


@each_pair
def debiased(beta: float | Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """``(bhat, 1 - bhat)`` with ``bhat = beta (1 - beta^(t-1)) / (1 - beta^t)`` (FAdam, Algorithm 1, line 6).

    An average with decay ``bhat`` equals the bias-corrected average with decay ``beta``. Both numbers are formed on
    their own in float64 (SPEC D4b): at t = 1 they are exactly 0 and 1.
    """
    correction = bias_correction(beta, step)
    return beta * bias_correction(beta, step - 1) / correction, (1.0 - beta) / correction


# -- elementwise ------------------------------------------------------------------------------------------------------


@each
def _saturate_(x: Tensor) -> Tensor:
    """Squares and their sums go up to half the largest number, so that no average of them rounds beyond it."""
    return x.clamp_(max=torch.finfo(x.dtype).max / 2)


@each
def square(x: Tensor) -> Tensor:
    """``x^2``, saturating."""
    return _saturate_(x.square())


@each
def power(x: Tensor, exponent: float) -> Tensor:
    """``x^exponent`` for ``x >= 0`` as a new tensor, saturating."""
    if exponent == 0.5:
        return x.sqrt()
    if exponent == 1.0:
        return x.clone()
    if x.device.type != "cpu" or x.numel() <= _SERIAL or torch.compiler.is_compiling():
        y = x.pow(exponent)
    else:
        # torch splits a tensor over its threads anywhere, and computes what is left of a vector register at each end
        # with another pow than the rest: the last bit would depend on the number of threads.
        y = torch.empty_like(x)
        for part, out in zip(torch.split(flat(x), _SERIAL), torch.split(flat(y), _SERIAL), strict=True):
            torch.pow(part, exponent, out=out)
    return y.clamp_(max=torch.finfo(x.dtype).max) if exponent > 1.0 else y


@each
def quotient(x: Tensor, d: Tensor) -> Tensor:
    """``x / d`` for a denominator ``d >= 0``: 0 where d is 0 (SPEC D5), saturating where it would overflow."""
    largest = torch.finfo(x.dtype).max
    return (x / d.masked_fill(d == 0, math.inf)).clamp_(-largest, largest)


# -- whole-tensor statistics ------------------------------------------------------------------------------------------
# Each also takes `Shards`, and then the statistic is of the whole tensors.


@each
def _local_norm(x: Tensor) -> Tensor:
    """``sqrt(sum x^2)`` of what is here: a 0-d float64 tensor, right for any finite ``x`` (0 if it is empty).

    The elements are divided by the largest of them, so that neither squares nor sums leave the range, and summed in
    rows of fixed length, so that the result does not depend on how many threads there are.
    """
    if torch.compiler.is_compiling():  # fused into one pass: nothing is gained by a detour, and no copy is made
        return x.double().square().sum().sqrt()
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=x.device)
    x = flat(x)
    largest: Tensor = torch.linalg.vector_norm(x, math.inf)
    x = x / largest.masked_fill(largest == 0, 1.0)
    rows = x.numel() // _ROW
    norms = torch.linalg.vector_norm(x[: rows * _ROW].view(rows, _ROW), dim=1)
    rest = torch.linalg.vector_norm(x[rows * _ROW :])
    relative: Tensor = torch.linalg.vector_norm(torch.stack([norms.double().square().sum().sqrt(), rest.double()]))
    return largest * relative


def l2_norms(*xs: Tensor) -> tuple[Tensor, ...]:
    """``sqrt(sum x^2)`` over each whole tensor: 0-d float64 tensors."""
    norms: list[Any] = [_local_norm(x) for x in xs]
    if isinstance(norms[0], Shards):
        return tuple(square_sum.sqrt() for square_sum in total(*((norm.square(), _ANY) for norm in norms)))
    return tuple(norms)


def rms(*xs: Tensor) -> tuple[Tensor, ...]:
    """``sqrt(mean x^2)`` over each whole tensor: 0-d float64 tensors."""
    return tuple(_root_mean(norm, x.numel()) for norm, x in zip(l2_norms(*xs), xs, strict=True))


@each
def _root_mean(norm: Tensor, numel: int) -> Tensor:
    return norm / math.sqrt(max(1, numel))


def clip_by_rms_(c: float | None, *xs: Tensor | None) -> None:
    """``x / max(1, rms(x)/c)`` in place, each by its own (SPEC D2); ``c=None`` does nothing, and None is no tensor."""
    _clip_(c, rms, [x for x in xs if x is not None])


def clip_by_norm_(c: float | None, *xs: Tensor) -> None:
    """``x / max(1, |x|/c)`` with the L2 norm, in place; ``c=None`` leaves them alone."""
    _clip_(c, l2_norms, xs)


def _clip_(c: float | None, sizes: Callable[..., tuple[Tensor, ...]], xs: Sequence[Tensor]) -> None:
    if c is not None:
        for x, size in zip(xs, sizes(*xs), strict=True):
            x.div_((size / c).clamp_(min=1.0))


def row_and_column_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over the columns and over the rows: ``(..., n, k) -> (..., n), (..., k)``, saturating."""
    rows: Any
    columns: Any
    rows, columns = _local_sums(x)
    if isinstance(rows, Shards):
        rows, columns = total((rows, ("columns",)), (columns, ("rows",)))
    return _saturate_(rows), _saturate_(columns)


@each_pair
def _local_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sum(dim=-1), x.sum(dim=-2)


def outer_fisher(R: Tensor, C: Tensor) -> Tensor:
    """``outer(R, C) / sum(R)``: ``(..., n), (..., k) -> (..., n, k)``; 0 where sum(R) is 0 (SPEC D11)."""
    sum_R: Any = _local_sum(R)
    if isinstance(sum_R, Shards):
        (sum_R,) = total((sum_R, ("rows",)))
    return _outer(R, C, sum_R)


@each
def _local_sum(R: Tensor) -> Tensor:
    return (R.double() * _SMALL).sum(dim=-1, keepdim=True)


@each
def _outer(R: Tensor, C: Tensor, sum_R: Tensor) -> Tensor:
    share = quotient(R.double() * _SMALL, sum_R).to(R.dtype)  # at most 1: the product with C cannot overflow
    return share.unsqueeze(-1) * C.unsqueeze(-2)
