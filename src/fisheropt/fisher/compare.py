"""How far two Fisher diagonals are apart: per parameter tensor, and over the whole model.

For two vectors a and b of n entries >= 0::

    cosine            sum(a b) / sqrt(sum(a^2) sum(b^2))                           in [0, 1]
    trace ratio       sum(a) / sum(b)                                              the one number that has a scale
    rank correlation  Pearson correlation of the ranks, ties sharing their mean    in [-1, 1] (Spearman)
    top overlap       share of the k largest of a among the k largest of b         in [0, 1], k = ceil(top n)

Cosine, rank correlation and top overlap do not change when a or b is multiplied by a number, so they compare shapes
even where one of the two is f, which is a Fisher information divided by the batch size. The cosine is that of a few
large entries, the rank correlation that of all of them; they can disagree widely. Where entries tie for the k-th place,
each counts for the part of it that there is room for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Agreement", "FisherComparison", "compare_fisher"]


class Agreement(NamedTuple):
    """Of two diagonals, in one tensor or in all. NaN where it is not defined: all zero, or no two entries differ.

    Attributes:
        entries: n.
        cosine: in [0, 1].
        trace_ratio: of the first over the second, >= 0.
        rank_correlation: Spearman's, in [-1, 1].
        top_overlap: in [0, 1].
    """

    entries: int
    cosine: float
    trace_ratio: float
    rank_correlation: float
    top_overlap: float


@dataclass(frozen=True)
class FisherComparison:
    """What `compare_fisher` found.

    Attributes:
        layers: name of a parameter -> how its entries agree.
        total: how all entries together agree.
        top: the share of entries that counts as the top.
    """

    layers: Mapping[str, Agreement]
    total: Agreement
    top: float

    def __str__(self) -> str:
        rows = [*self.layers.items(), ("all", self.total)]
        width = max(len(name) for name, _ in rows)
        top = f"top {self.top:.3g}"
        lines = [f"{'':{width}}  {'entries':>10}  {'cosine':>7}  {'trace ratio':>11}  {'ranks':>7}  {top:>8}"]
        lines += [
            f"{name:{width}}  {r.entries:>10,}  {r.cosine:>7.3f}  {r.trace_ratio:>11.4g}  {r.rank_correlation:>7.3f}  "
            f"{r.top_overlap:>8.3f}"
            for name, r in rows
        ]
        return "\n".join(lines)


def compare_fisher(a: Mapping[str, Tensor], b: Mapping[str, Tensor], *, top: float = 0.01) -> FisherComparison:
    """Compare two diagonals of the same parameters.

    Args:
        a, b: name -> entries >= 0, such as `FisherDiagonal`; the same names and shapes.
        top: the share of the entries whose overlap is looked at, in (0, 1].

    Raises:
        ValueError: names or shapes differ, or ``top`` is out of its range.

    Example:
        >>> import torch
        >>> a = {"w": torch.tensor([1.0, 2.0, 3.0])}
        >>> compare_fisher(a, {"w": 5 * a["w"]}, top=0.5).total
        Agreement(entries=3, cosine=1.0, trace_ratio=0.2, rank_correlation=1.0, top_overlap=1.0)
    """
    if not 0 < top <= 1:
        raise ValueError(f"top must be in (0, 1], got {top!r}")
    if a.keys() != b.keys():
        raise ValueError(f"a and b must have the same names; only one has {', '.join(sorted(a.keys() ^ b.keys()))}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(
                f"a and b differ in the shape of {name}: {tuple(a[name].shape)} and {tuple(b[name].shape)}"
            )
    flat_a, flat_b = ([x[name].detach().double().flatten().cpu() for name in a] for x in (a, b))
    layers = {name: _agreement(u, v, top) for name, u, v in zip(a, flat_a, flat_b, strict=True)}
    nothing = [torch.zeros(0, dtype=torch.float64)]
    return FisherComparison(layers, _agreement(torch.cat(flat_a or nothing), torch.cat(flat_b or nothing), top), top)


def _agreement(a: Tensor, b: Tensor, top: float) -> Agreement:
    return Agreement(
        entries=a.numel(),
        cosine=_cosine(a, b),
        trace_ratio=_ratio(float(a.sum()), float(b.sum())),
        rank_correlation=_correlation(_ranks(a), _ranks(b)),
        top_overlap=_top_overlap(a, b, top),
    )


def _ratio(x: float, y: float) -> float:
    return x / y if y else math.nan


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = _relative(a), _relative(b)  # squares of squares of gradients leave the range soon
    return _ratio(float(a @ b), math.sqrt(float(a @ a) * float(b @ b)))


def _relative(x: Tensor) -> Tensor:
    largest = x.abs().max() if x.numel() else x.new_zeros(())
    return x / largest if float(largest) else x


def _correlation(a: Tensor, b: Tensor) -> float:
    return _cosine(a - a.mean(), b - b.mean()) if a.numel() else math.nan


def _ranks(x: Tensor) -> Tensor:
    """1 for the smallest to n for the largest; entries that are equal share the mean of their ranks."""
    _, group, size = torch.unique(x, return_inverse=True, return_counts=True)
    last = size.cumsum(0)
    ranks: Tensor = (last - (size - 1) / 2).double()[group]
    return ranks


def _top_overlap(a: Tensor, b: Tensor, top: float) -> float:
    if a.numel() == 0:
        return math.nan
    k = math.ceil(top * a.numel())
    return float(torch.minimum(_membership(a, k), _membership(b, k)).sum()) / k


def _membership(x: Tensor, k: int) -> Tensor:
    """By how much each entry is among the k largest: 1, 0, or in between where more tie for the k-th place than fit."""
    threshold = x.topk(k).values[-1]
    above, at = x > threshold, x == threshold
    return above + at * ((k - above.sum()) / at.sum())
