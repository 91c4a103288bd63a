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

import torch
from torch import Tensor

from fisheropt._layout import flat

__all__ = [
    "bias_correction",
    "clip_by_norm",
    "clip_by_rms",
    "debiased",
    "l2_norm",
    "outer_fisher",
    "power",
    "quotient",
    "rms",
    "square",
    "sum_columns",
    "sum_rows",
]

_ROW = 1024  # elements summed in one go; short enough for float32, long enough to vectorise
_SERIAL = 32768  # torch's grain size: an elementwise kernel runs on one thread up to here


# -- scalars that depend on the step ----------------------------------------------------------------------------------


def bias_correction(beta: float | Tensor, step: Tensor) -> Tensor:
    """``1 - beta^t`` in float64. ``step``: 0-d tensor, t >= 1. Returns a 0-d tensor."""
    return 1.0 - torch.pow(beta, step.double())


def debiased(beta: float | Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """``(bhat, 1 - bhat)`` with ``bhat = beta (1 - beta^(t-1)) / (1 - beta^t)`` (FAdam, Algorithm 1, line 6).

    An average with decay ``bhat`` equals the bias-corrected average with decay ``beta``. Both numbers are formed on
    their own in float64 (SPEC D4b): at t = 1 they are exactly 0 and 1.
    """
    correction = bias_correction(beta, step)
    return beta * bias_correction(beta, step - 1) / correction, (1.0 - beta) / correction


# -- elementwise ------------------------------------------------------------------------------------------------------


def _ceiling(x: Tensor) -> float:
    """Where squares and their sums saturate: half the largest number, so that no average of them rounds beyond it."""
    return torch.finfo(x.dtype).max / 2


def square(x: Tensor) -> Tensor:
    """``x^2``, saturating at half the largest finite number of the dtype."""
    return x.square().clamp_(max=_ceiling(x))


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


def quotient(x: Tensor, d: Tensor) -> Tensor:
    """``x / d`` for a denominator ``d >= 0``: 0 where d is 0 (SPEC D5), saturating where it would overflow."""
    largest = torch.finfo(x.dtype).max
    return (x / d.masked_fill(d == 0, math.inf)).clamp_(-largest, largest)


# -- whole-tensor statistics ------------------------------------------------------------------------------------------


def l2_norm(x: Tensor) -> Tensor:
    """``sqrt(sum x^2)`` over the whole tensor: a 0-d float64 tensor, right for any finite ``x`` (0 if it is empty).

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


def rms(x: Tensor) -> Tensor:
    """``sqrt(mean x^2)`` over the whole tensor (all shards of it): a 0-d float64 tensor."""
    return l2_norm(x) / math.sqrt(max(1, x.numel()))


def clip_by_rms(x: Tensor, c: float | None) -> Tensor:
    """``x / max(1, rms(x)/c)`` in place (SPEC D2); ``c=None`` leaves ``x`` alone."""
    return x if c is None else x.div_((rms(x) / c).clamp_(min=1.0))


def clip_by_norm(x: Tensor, c: float | None) -> Tensor:
    """``x / max(1, |x|/c)`` with the L2 norm, in place; ``c=None`` leaves ``x`` alone."""
    return x if c is None else x.div_((l2_norm(x) / c).clamp_(min=1.0))


def sum_columns(x: Tensor) -> Tensor:
    """For each row, the sum over its columns: ``(..., n, k) -> (..., n)``, saturating."""
    return x.sum(dim=-1).clamp_(max=_ceiling(x))


def sum_rows(x: Tensor) -> Tensor:
    """For each column, the sum over its rows: ``(..., n, k) -> (..., k)``, saturating."""
    return x.sum(dim=-2).clamp_(max=_ceiling(x))


def outer_fisher(R: Tensor, C: Tensor) -> Tensor:
    """``outer(R, C) / sum(R)``: ``(..., n), (..., k) -> (..., n, k)``; 0 where sum(R) is 0 (SPEC D11)."""
    part = R.double() / max(1, R.shape[-1])  # so that their sum is finite, and with shares <= 1 the product too
    share = quotient(part, part.sum(dim=-1, keepdim=True)).to(R.dtype)
    return share.unsqueeze(-1) * C.unsqueeze(-2)
