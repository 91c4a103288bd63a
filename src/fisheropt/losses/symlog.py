"""symlog and symexp: a logarithm that takes both signs, and its inverse (Hafner et al. 2023, *DreamerV3*)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["symexp", "symlog"]


def symlog(x: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)``, elementwise. Its slope at 0 is 1, also for autograd."""
    return torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p((-x).clamp(min=0)))


def symexp(x: Tensor) -> Tensor:
    """``sign(x) (exp(|x|) - 1)``, elementwise: the inverse of `symlog`. Its slope at 0 is 1, also for autograd."""
    return torch.where(x >= 0, torch.expm1(x.clamp(min=0)), -torch.expm1((-x).clamp(min=0)))
