"""Regression by classification: a real target becomes a distribution over bins, and the loss a cross-entropy.

Two-hot: Bellemare et al. 2017; with symlog as in Hafner et al. 2023, *DreamerV3*. HL-Gauss: Imani and White 2018; the
truncated form and sigma = 0.75 bin widths are those of Farebrother et al. 2024, *Stop Regressing*, arXiv:2403.03950.

Both are cross-entropies with soft targets. At a perfect fit every gradient is zero, so that an optimizer's average of
squared gradients goes to zero there, while the Fisher information of the predicted distribution does not (SPEC, 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from fisheropt.losses.likelihood import Likelihood, sample_index, widened
from fisheropt.losses.symlog import symexp

__all__ = ["HLGauss", "TwoHot", "hl_gauss", "two_hot"]


def two_hot(target: Tensor, atoms: Tensor) -> Tensor:
    """The weights of the two atoms on either side of a target, whose mean is the target: (...), (K,) -> (..., K).

    Args:
        target: clamped to the range of the atoms.
        atoms: positions, strictly ascending, K >= 2.
    """
    y = target.to(atoms.dtype).clamp(atoms[0], atoms[-1])
    below = (torch.searchsorted(atoms, y, right=True) - 1).clamp(0, len(atoms) - 2)  # atoms[below] <= y
    share = (y - atoms[below]) / (atoms[below + 1] - atoms[below])  # of the upper one, in [0, 1]
    weights = y.new_zeros(*y.shape, len(atoms))
    weights.scatter_(-1, below.unsqueeze(-1), (1 - share).unsqueeze(-1))
    weights.scatter_(-1, below.unsqueeze(-1) + 1, share.unsqueeze(-1))
    return weights


def hl_gauss(target: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """The mass of a normal distribution around a target, truncated, in every bin: (...), (K + 1,) -> (..., K).

    Args:
        target: the mean of the normal distribution; clamped to the range of the bins.
        edges: of the K bins, strictly ascending.
        sigma: its standard deviation, > 0, in the unit of the target.
    """
    y = target.to(edges.dtype).clamp(edges[0], edges[-1])
    below: Tensor = torch.special.ndtr((edges - y.unsqueeze(-1)) / sigma)  # (..., K + 1)
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


class _SoftBins(Likelihood):
    """A categorical distribution over positions; a target is a distribution too. Abstract."""

    discrete: ClassVar[bool] = True
    soft_targets: ClassVar[bool] = True

    bins: int

    @property
    def num_parameters(self) -> int:
        return self.bins

    def positions(self, like: Tensor) -> Tensor:
        """What each outcome stands for, in the unit of targets, ascending: (bins,)."""
        raise NotImplementedError

    def probabilities(self, target: Tensor) -> Tensor:
        """The soft target: (...) -> (..., bins), sums to one."""
        raise NotImplementedError

    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        logits = self.checked(params, target)
        return -(self.probabilities(target.to(logits)) * torch.log_softmax(logits, -1)).sum(-1)

    def sample(self, params: Tensor, generator: Generator | None = None) -> Tensor:
        logits = self.checked(params)
        return self.positions(logits)[sample_index(logits, generator)]

    def decode(self, params: Tensor) -> Tensor:
        logits = self.checked(params)
        return torch.softmax(logits, -1) @ self.positions(logits)

    def _check_range(self, low: float, high: float) -> None:
        if self.bins < 2:
            raise ValueError(f"bins must be >= 2, got {self.bins!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low and high must be finite and low < high, got {low!r} and {high!r}")


@dataclass(frozen=True)
class TwoHot(_SoftBins):
    """Two neighbouring atoms share a target so that their mean is the target.

    Args:
        low, high: the first and last atom, in the unit of targets. Targets beyond them are clamped.
        bins: number of atoms, >= 2.
        spacing: "linear", or "symlog": evenly spaced after `symlog`, fine around 0 and coarse far from it, for
            targets of unknown magnitude.
    """

    low: float
    high: float
    bins: int = 51
    spacing: Literal["linear", "symlog"] = "linear"

    def __post_init__(self) -> None:
        self._check_range(self.low, self.high)
        if self.spacing not in ("linear", "symlog"):
            raise ValueError(f"spacing must be 'linear' or 'symlog', got {self.spacing!r}")

    def positions(self, like: Tensor) -> Tensor:
        if self.spacing == "linear":
            return torch.linspace(self.low, self.high, self.bins, dtype=like.dtype, device=like.device)
        low, high = (math.copysign(math.log1p(abs(end)), end) for end in (self.low, self.high))
        return symexp(torch.linspace(low, high, self.bins, dtype=torch.float64, device=like.device)).to(like.dtype)

    def probabilities(self, target: Tensor) -> Tensor:
        target = widened(target)
        return two_hot(target, self.positions(target))


@dataclass(frozen=True)
class HLGauss(_SoftBins):
    """A histogram of a normal distribution around the target (Histogram Loss).

    Args:
        low, high: the outer edges of the bins, in the unit of targets. Targets beyond them are clamped.
        bins: >= 2. An outcome stands for the middle of its bin.
        sigma_in_bins: standard deviation in widths of a bin, > 0. The mean of a target near an edge is drawn inwards by
            up to about sigma: leave a margin of a few sigma.
    """

    low: float
    high: float
    bins: int = 51
    sigma_in_bins: float = 0.75

    def __post_init__(self) -> None:
        self._check_range(self.low, self.high)
        if not 0 < self.sigma_in_bins < math.inf:
            raise ValueError(f"sigma_in_bins must be a finite number > 0, got {self.sigma_in_bins!r}")

    @property
    def sigma(self) -> float:
        """Standard deviation in the unit of targets."""
        return self.sigma_in_bins * (self.high - self.low) / self.bins

    def positions(self, like: Tensor) -> Tensor:
        edges = self._edges(like)
        return (edges[:-1] + edges[1:]) / 2

    def probabilities(self, target: Tensor) -> Tensor:
        target = widened(target)
        return hl_gauss(target, self._edges(target), self.sigma)

    def _edges(self, like: Tensor) -> Tensor:
        return torch.linspace(self.low, self.high, self.bins + 1, dtype=like.dtype, device=like.device)
