"""Sets of labels a likelihood may be a distribution over, with weights that turn a sum over them into its total."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LabelSet", "binary", "classes", "counts", "factorial_counts", "reals", "signs"]

_STEP = 5e-4  # of the grid for real labels before it is stretched
_REACH = 12.0  # sinh(12) = 81,000: tails that fall with a power are integrated to a part in ten thousand
_COUNTS = 400


@dataclass(frozen=True)
class LabelSet:
    """Labels y with ``sum over y of exp(log_weight(y)) exp(-loss(y))`` for the total of a likelihood.

    Attributes:
        name: for people.
        values: (n,), int64 for classes and float64 otherwise, ascending.
        log_weights: (n,), float64: of the base measure, and for real labels of the quadrature too.
        edges: how many labels at the lower and the upper end stand for those beyond, to which nothing may be left.
        tolerance: up to which totals and means count as exact.
    """

    name: str
    values: Tensor
    log_weights: Tensor
    edges: tuple[int, int]
    tolerance: float

    @property
    def continuous(self) -> bool:
        return self.edges[0] > 0


def classes(n: int) -> LabelSet:
    """0 to n - 1."""
    return _finite(f"{n} classes", torch.arange(n))


def binary() -> LabelSet:
    """0 and 1, as real numbers."""
    return _finite("{0, 1}", torch.tensor([0.0, 1.0], dtype=torch.float64))


def signs() -> LabelSet:
    """-1 and 1."""
    return _finite("{-1, 1}", torch.tensor([-1.0, 1.0], dtype=torch.float64))


def counts() -> LabelSet:
    """0, 1, 2, ... with equal weights."""
    y = torch.arange(_COUNTS, dtype=torch.float64)
    return LabelSet("counts 0, 1, 2, ...", y, torch.zeros_like(y), (0, 5), 1e-6)


def factorial_counts() -> LabelSet:
    """0, 1, 2, ... with weights 1/y!, which losses for counts leave out because they do not depend on the outputs."""
    y = torch.arange(_COUNTS, dtype=torch.float64)
    return LabelSet("counts 0, 1, 2, ... of weight 1/y!", y, -torch.lgamma(y + 1), (0, 5), 1e-6)


def reals() -> LabelSet:
    """The real line: trapezoidal quadrature after y = sinh(u), fine near zero and far reaching."""
    u = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64)
    return LabelSet("real numbers", u.sinh(), u.cosh().log() + math.log(_STEP), (20, 20), 5e-3)


def _finite(name: str, values: Tensor) -> LabelSet:
    return LabelSet(name, values, torch.zeros(len(values), dtype=torch.float64), (0, 0), 1e-6)
