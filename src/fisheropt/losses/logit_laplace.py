"""The logit-Laplace density of pixels (Ramesh et al. 2021, *DALL-E*, arXiv:2102.12092, Appendix A.3).

A pixel x in [0, 1] is first drawn in by eps, y = (1 - 2 eps) x + eps, because the density of y lives on the open
interval (0, 1) and is that of a number whose logit is Laplace-distributed::

    p(y) = exp(-|logit(y) - mu| / b) / (2 b y (1 - y))                    Equation 3
    p(x) = (1 - 2 eps) p(y)                                               change of variable

The paper leaves the constant factor out. With it the density of x integrates to one, over
(-eps/(1 - 2 eps), 1 + eps/(1 - 2 eps)): a part of the mass lies beyond black and white.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from fisheropt.losses.likelihood import Likelihood, check_floor

__all__ = ["LogitLaplace", "logit_laplace"]


def logit_laplace(x: Tensor, mu: Tensor, log_b: Tensor, eps: float = 0.1) -> Tensor:
    """``-log p(x)`` in nats, elementwise.

    Args:
        x: pixels in [0, 1].
        mu: the median of the logit.
        log_b: the logarithm of its scale.
        eps: of the mapping, in (0, 1/2).
    """
    y = (1 - 2 * eps) * x + eps
    return (
        (torch.logit(y) - mu).abs() * torch.exp(-log_b)
        + log_b
        + torch.log(y)
        + torch.log1p(-y)
        + (math.log(2.0) - math.log1p(-2 * eps))
    )


@dataclass(frozen=True)
class LogitLaplace(Likelihood):
    """Two numbers per pixel, mu and log b. Targets: pixels in [0, 1].

    Draws may lie beyond [0, 1], as far as the density does; `decode` is the median (the mean has no closed form),
    drawn into [0, 1].

    Args:
        eps: how far pixels are drawn in, in (0, 1/2).
        min_log_scale: floor of log b, in [-30, 0]; without one a single exact pixel has an infinite density.
    """

    eps: float = 0.1
    min_log_scale: float = -7.0

    discrete: ClassVar[bool] = False
    soft_targets: ClassVar[bool] = False
    point: ClassVar[Literal["mean", "median"]] = "median"

    def __post_init__(self) -> None:
        if not 0 < self.eps < 0.5:
            raise ValueError(f"eps must be in (0, 1/2), got {self.eps!r}")
        check_floor(self.min_log_scale)

    @property
    def num_parameters(self) -> int:
        return 2

    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        mu, log_b = self._split(self.checked(params, target))
        return logit_laplace(target.to(mu), mu, log_b, self.eps)

    def sample(self, params: Tensor, generator: Generator | None = None) -> Tensor:
        mu, log_b = self._split(self.checked(params))
        u = torch.rand(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device) - 0.5  # [-1/2, 1/2)
        tail = torch.log1p(-(2 * u.abs()).clamp(max=1 - torch.finfo(mu.dtype).eps))
        return self._pixel(mu - torch.exp(log_b) * torch.sign(u) * tail)

    def decode(self, params: Tensor) -> Tensor:
        mu, _ = self._split(self.checked(params))
        return self._pixel(mu).clamp(0, 1)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        return params[..., 0], params[..., 1].clamp(min=self.min_log_scale)

    def _pixel(self, logit: Tensor) -> Tensor:
        return (torch.sigmoid(logit) - self.eps) / (1 - 2 * self.eps)
