"""What a few paired differences can say: Student's interval, and the smallest difference they could have shown.

Two optimizers that train the same model from the same weights on the same batches share most of what chance does to a
run. So the seeds are paired: d_i is the difference on seed i, and the interval is that of the mean of the d_i,

    mean(d) +- t(0.975, n - 1) s / sqrt(n),        s the sample standard deviation of the d_i.

It assumes that the d_i are roughly normal; with five seeds nobody can check that, and the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
POWER = 0.80
CLAIM_SEEDS = 5  # fewer than this many fresh seeds support no claim


@dataclass(frozen=True)
class Paired:
    """The differences of two optimizers over the seeds, mine minus theirs: below zero, mine is lower."""

    differences: tuple[float, ...]

    @property
    def seeds(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return fmean(self.differences)

    @property
    def error(self) -> float:
        """Standard error of the mean; two differences at least."""
        return stdev(self.differences) / math.sqrt(self.seeds)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean difference; infinite for a single seed, which says nothing about chance."""
        if self.seeds < 2:
            return -math.inf, math.inf
        half = _student(0.5 + CONFIDENCE / 2, self.seeds - 1) * self.error
        return self.mean - half, self.mean + half

    @property
    def smallest_shown(self) -> float:
        """The smallest true difference that this many seeds, scattering as they do, would show in 80 % of attempts.

        The usual approximation (t(0.975) + t(0.8)) s / sqrt(n).
        """
        if self.seeds < 2:
            return math.inf
        quantiles = _student(0.5 + CONFIDENCE / 2, self.seeds - 1) + _student(POWER, self.seeds - 1)
        return quantiles * self.error

    @property
    def seen(self) -> bool:
        """Whether the interval excludes zero, from seeds enough for a claim."""
        low, high = self.interval
        return self.seeds >= CLAIM_SEEDS and (low > 0 or high < 0)


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Pair the results of two optimizers, both in the order of the seeds."""
    return Paired(tuple(a - b for a, b in zip(mine, theirs, strict=True)))


def _student(probability: float, freedom: int) -> float:
    from scipy.special import stdtrit  # takes half a second to import

    return float(stdtrit(freedom, probability))
