"""What a Fisher information is asked of: which likelihood, per what, and which labels count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fisheropt.fisher.batches import Batch
from fisheropt.fisher.diagonal import Unit
from fisheropt.fisher.distributions import Likelihood, NegativeLogLikelihood, likelihood_of
from fisheropt.fisher.pulls import counted_labels

__all__ = ["Mask", "Question", "asked"]

Mask = Callable[[Any, Tensor], Tensor]
"""``mask(inputs, targets)``: which labels count, (N, *positions), bool."""


@dataclass(frozen=True)
class Question:
    """The arguments that all estimates share, checked.

    Attributes:
        name: of the likelihood.
        likelihood: of labels given outputs.
        unit: what F is per.
        mask: which labels count, or None: all.
        ignore_index: an integer label that never counts.
    """

    name: str
    likelihood: Likelihood | NegativeLogLikelihood
    unit: Unit
    mask: Mask | None
    ignore_index: int

    def labels(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which labels count, (N, *positions), and targets with a valid label also where none does.

        Raises:
            ValueError: targets or mask do not fit the outputs.
        """
        targets, ignored = batch.targets, None
        if not targets.is_floating_point():
            ignored = targets == self.ignore_index
            targets = targets.masked_fill(ignored, 0) if targets.dtype != torch.bool else targets
        counts = counted_labels(self.likelihood, outputs, targets)
        if ignored is not None:  # a label of several numbers does not count if one of them is ignored
            counts = counts & ~(
                ignored if ignored.shape == counts.shape else ignored.reshape(*counts.shape, -1).any(-1)
            )
        if self.mask is not None:
            chosen = self.mask(batch.inputs, batch.targets)
            if chosen.shape != counts.shape:
                raise ValueError(
                    f"mask must return one truth value per label, shape {tuple(counts.shape)}, got "
                    f"{tuple(chosen.shape)}"
                )
            counts = counts & chosen.bool()
        return counts, targets

    def units(self, counts: Tensor) -> tuple[int, int]:
        """How many units there are, and how many more without a label that counts."""
        is_unit = counts.flatten(1).any(1) if self.unit == "example" and counts.dim() > 1 else counts
        units = int(is_unit.sum())
        return units, is_unit.numel() - units


def asked(
    likelihood: Any,
    unit: Unit,
    mask: Mask | None,
    ignore_index: int,
    *,
    estimator: str,
    estimators: Sequence[str],
    n_samples: int = 1,
    max_examples: int | None = None,
) -> Question:
    """The question that these arguments ask.

    Raises:
        ValueError: one of them is unknown or out of its range, or the estimator needs more than a function tells.
        TypeError: the likelihood is neither a name nor a function.
    """
    name, found = likelihood_of(likelihood)
    for argument, value, known in (("estimator", estimator, estimators), ("unit", unit, ("example", "token"))):
        if value not in known:
            raise ValueError(f"{argument} must be one of {', '.join(map(repr, known))}, got {value!r}")
    for argument, number in (("n_samples", n_samples), ("max_examples", max_examples)):
        if number is not None and number < 1:
            raise ValueError(f"{argument} must be >= 1, got {number!r}")
    needs = {"exact": "column", "mc": "sample"}.get(estimator)
    if needs is not None and not hasattr(found, needs):
        raise ValueError(
            f"estimator={estimator!r} must know the distribution of the labels, and a function gives -log p of given "
            "ones only; name a likelihood, or use estimator='empirical'"
        )
    return Question(name, found, unit, mask, ignore_index)
