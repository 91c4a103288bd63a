"""What every likelihood of this package offers, and the few things all of them do in the same way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

__all__ = ["Likelihood", "check_floor", "sample_index", "widened"]


class Likelihood(ABC):
    """A distribution of targets, as a function of what a model puts out.

    ``params`` are the last dimension of the model's output, `num_parameters` numbers per target, and ``target`` has the
    other dimensions: (..., num_parameters) and (...). Only `DiscretizedLogisticMixture` of several channels has a
    dimension more in its targets. Everything is computed in float32, or float64 if params are, and returned in that.

    Attributes:
        discrete: whether targets have probabilities rather than a density. Over discrete outcomes the empirical Fisher
            information that FAdam accumulates is that of a distribution which sums to one (arXiv:2405.12807, Section
            3.2.1); of a density it depends on the unit of the target.
        soft_targets: whether one target is spread over several outcomes. Then the gradient is zero at a fit, although
            the Fisher information is not, and `nll` is a cross-entropy: no code length of the target.
        point: what `decode` returns.
    """

    discrete: ClassVar[bool]
    soft_targets: ClassVar[bool]
    point: ClassVar[Literal["mean", "median"]] = "mean"

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Numbers a model puts out per target."""

    @abstractmethod
    def nll(self, params: Tensor, target: Tensor) -> Tensor:
        """The negative log-likelihood in nats, one number per target: (..., num_parameters), (...) -> (...).

        Raises:
            ValueError: params have another number in their last dimension, or the shapes do not fit.
        """

    @abstractmethod
    def sample(self, params: Tensor, generator: Generator | None = None) -> Tensor:
        """One draw per target, in the unit of targets: (..., num_parameters) -> (...)."""

    @abstractmethod
    def decode(self, params: Tensor) -> Tensor:
        """The mean (or median, see `point`), in the unit of targets: (..., num_parameters) -> (...)."""

    def bits_per_dim(self, params: Tensor, target: Tensor) -> Tensor:
        """`nll` in bits per number of the target, averaged over all of them: a scalar.

        Of a density it is relative to the unit of the target and may be negative.
        """
        return self.nll(params, target).sum() / (max(1, target.numel()) * math.log(2.0))

    def checked(self, params: Tensor, target: Tensor | None = None) -> Tensor:
        """``params`` in the precision to compute in, if their shape and that of ``target`` fit."""
        name = type(self).__name__
        if params.dim() == 0 or params.shape[-1] != self.num_parameters:
            raise ValueError(
                f"{name} takes params of shape (..., {self.num_parameters}), got {tuple(params.shape)}; "
                "let the last layer put out num_parameters numbers per target"
            )
        if target is not None and target.shape != self.target_shape(params):
            raise ValueError(
                f"{name} takes a target of shape {tuple(self.target_shape(params))} with params of shape "
                f"{tuple(params.shape)}, got {tuple(target.shape)}"
            )
        return widened(params)

    def target_shape(self, params: Tensor) -> torch.Size:
        """The shape of the targets that belong to params."""
        return params.shape[:-1]


def widened(x: Tensor) -> Tensor:
    """float32, or float64 if it is that: probabilities of rare events do not survive in fewer bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def sample_index(logits: Tensor, generator: Generator | None) -> Tensor:
    """A draw from each categorical distribution: (..., K) -> (...), int64."""
    probabilities = torch.softmax(logits, -1)
    drawn = torch.multinomial(probabilities.reshape(-1, logits.shape[-1]), 1, generator=generator)
    return drawn.reshape(logits.shape[:-1])


def check_floor(min_log_scale: float) -> None:
    """A floor that keeps 1/scale, and targets divided by it, finite in float32."""
    if not -30 <= min_log_scale <= 0:
        raise ValueError(f"min_log_scale must be in [-30, 0], got {min_log_scale!r}")
