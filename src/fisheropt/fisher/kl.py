"""Whether the Fisher information measures what it says: the KL divergence between neighbouring models (Equation 9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fisheropt.fisher.diagonal import Unit
from fisheropt.fisher.models import trainable
from fisheropt.fisher.product import FisherProduct
from fisheropt.fisher.questions import Mask

__all__ = ["KLCheck", "kl_check"]


@dataclass(frozen=True)
class KLCheck:
    """KL and its quadratic approximation along one direction.

    Attributes:
        lengths: |d|, the Euclidean lengths of the steps.
        kl: KL(p_theta || p_(theta + d)) per unit, in nats.
        quadratic: d' F d / 2.
    """

    lengths: tuple[float, ...]
    kl: tuple[float, ...]
    quadratic: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """KL / (d' F d / 2): it goes to 1 with |d|, and its distance from 1 is proportional to |d|."""
        return tuple(kl / q for kl, q in zip(self.kl, self.quadratic, strict=True))

    def __str__(self) -> str:
        rows = ["     |d|           KL      d'Fd/2   ratio - 1"]
        for length, kl, q, ratio in zip(self.lengths, self.kl, self.quadratic, self.ratios, strict=True):
            rows.append(f"{length:8.1e}  {kl:11.4e} {q:11.4e}  {ratio - 1:+10.2e}")
        return "\n".join(rows)


def kl_check(
    model: nn.Module,
    data: Iterable[Any],
    *,
    direction: Mapping[str, Tensor] | None = None,
    lengths: Sequence[float] = (1.0, 0.1, 0.01),
    likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical",
    unit: Unit = "example",
    mask: Mask | None = None,
    ignore_index: int = -100,
    max_examples: int | None = None,
) -> KLCheck:
    """Compare KL(p_theta || p_(theta + d)) with d' F d / 2 for ever shorter d.

    The KL divergence is the distance that a natural gradient is steepest in, and F its second derivative: the ratio of
    the two goes to 1, ten times as near for a tenth of the step. Where it does not, F is not the Fisher information of
    this likelihood, or the steps are in the rounding error: KL is a small difference of large numbers. Use float64
    (``model.double()``) for lengths whose KL is below 1e-6.

    Args:
        model, data, likelihood, unit, mask, ignore_index, max_examples: as for `fisher_diag`.
        direction: name -> tensor for every trainable parameter, of any length > 0; None: a random one, always the same.
        lengths: |d|, each > 0.

    Raises:
        ValueError: a length is not positive, the direction is zero, lacks a parameter, or does not change the outputs.

    Source: Hwang, arXiv:2405.12807, Equation 9.
    """
    if not lengths or not all(length > 0 for length in lengths):
        raise ValueError(f"lengths must be positive numbers, got {lengths!r}")
    params = trainable(model)
    if direction is None:
        generator = torch.Generator().manual_seed(0)
        direction = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}
    if missing := params.keys() - direction.keys():
        raise ValueError(f"direction must have every trainable parameter, and lacks {min(missing)!r}")
    d = {name: direction[name].to(p.device, p.dtype) for name, p in params.items()}
    norm = float(torch.stack([x.double().square().sum() for x in d.values()]).sum().sqrt())
    if norm == 0:
        raise ValueError("direction is zero")
    product = FisherProduct(
        model, data, likelihood=likelihood, unit=unit, mask=mask, ignore_index=ignore_index, max_examples=max_examples
    )
    curvature = product.quadratic(d) / norm**2  # along the direction of length 1
    if curvature == 0:
        raise ValueError("the outputs of the model do not change along this direction")
    kl = [product.kl({name: x * (length / norm) for name, x in d.items()}) for length in lengths]
    return KLCheck(tuple(map(float, lengths)), tuple(kl), tuple(curvature * length**2 / 2 for length in lengths))
