"""The diagonal of the Fisher information of a model on data: four estimators under their right names.

SPEC section 5. F is per unit, averaged over units, of -log p in nats::

    exact       F = 1/U sum_u E_y~model [(d log p(y | x_u))^2]     labels summed under the model: Fisher = GGN
    mc          the same, with labels drawn from the model
    empirical   F = 1/U sum_u (d log p(y_u | x_u))^2               the labels of the data, mean of squares
    batched     F = mean over batches of (1/U_b sum_u d log p)^2   square of the mean: what Adam and FAdam accumulate
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fisheropt.fisher.batch_square import BatchSquare
from fisheropt.fisher.batches import batches
from fisheropt.fisher.diagonal import FisherDiagonal, Unit
from fisheropt.fisher.distributions import NegativeLogLikelihood
from fisheropt.fisher.models import check_model, undisturbed
from fisheropt.fisher.pulls import pulls
from fisheropt.fisher.questions import Mask, asked
from fisheropt.fisher.unit_squares import UnitSquares

__all__ = ["fisher_diag"]


def fisher_diag(
    model: nn.Module,
    data: Iterable[Any],
    *,
    likelihood: Literal["categorical", "bernoulli", "gaussian"] | NegativeLogLikelihood = "categorical",
    estimator: Literal["exact", "mc", "empirical", "batched"] = "exact",
    n_samples: int = 1,
    unit: Unit = "example",
    mask: Mask | None = None,
    ignore_index: int = -100,
    max_examples: int | None = None,
    generator: torch.Generator | None = None,
) -> FisherDiagonal:
    """The diagonal of the Fisher information of every trainable parameter.

    Gradients (``.grad``), hooks on gradients, train and eval flags, buffers and random states stay as they are.

    Args:
        model: ``model(inputs)`` returns outputs (N, *positions, K), or something with such ``logits``.
        data: batches ``(inputs, targets)``; inputs are a tensor, or a sequence or mapping of arguments, with examples
            in the first dimension. How the data is cut into batches changes nothing but rounding, except for
            ``"batched"``, which is about batches.
        likelihood: of the targets given the outputs: ``"categorical"`` (logits; class indices), ``"bernoulli"``
            (logits; 0 or 1) or ``"gaussian"`` (means; variance 1), or ``nll(outputs, targets)``, which returns -log p
            of each label in nats, (N, *positions), for the estimators that need no more: empirical and batched.
        estimator: ``"exact"`` sums over the labels, at (positions x K) backward passes through activations per batch;
            ``"mc"`` draws them, ``n_samples`` passes; ``"empirical"`` takes the data's, one pass (one per position with
            ``unit="token"``); ``"batched"`` squares the mean gradient of each batch, one pass.
        n_samples: labels drawn per label, >= 1; for ``"mc"``.
        unit: what F is per. ``"example"``: gradients are summed over the labels of an example, then squared.
            ``"token"``: the gradient of one label is squared, complete with all that it reaches, also at positions
            before it by attention.
        mask: ``mask(inputs, targets)``: which labels count, bool, (N, *positions); None: all.
        ignore_index: labels with this index never count; for integer targets.
        max_examples: stop after so many; None: never.
        generator: for the labels drawn. None: a new one, seeded with 0, so that two calls draw the same.

    Returns:
        The diagonal. It has standard errors if there were at least two batches: from the spread of the means of
        batches, with as many degrees of freedom as batches less one.

    Raises:
        ValueError: an argument is out of range, the model takes statistics over the batch (BatchNorm in train mode),
            targets do not fit the outputs, or no label counts.
        TypeError: data, model or outputs are of the wrong kind.

    Source: SPEC section 5; Hwang, arXiv:2405.12807, Equations 56-58.

    Example:
        >>> import torch, fisheropt.fisher
        >>> model = torch.nn.Linear(3, 2)
        >>> data = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
        >>> fisheropt.fisher.fisher_diag(model, data)["weight"].shape
        torch.Size([2, 3])
    """
    question = asked(
        likelihood,
        unit,
        mask,
        ignore_index,
        estimator=estimator,
        estimators=("exact", "mc", "empirical", "batched"),
        n_samples=n_samples,
        max_examples=max_examples,
    )
    check_model(model)
    batched = estimator == "batched"
    squares = BatchSquare(model) if batched else UnitSquares(model)
    sums = _Sums()
    with undisturbed(model):
        for batch in batches(data, max_examples):
            z = squares.forward(batch.inputs, batch.size).detach()
            counts, targets = question.labels(z, batch)
            units, masked = question.units(counts)
            sums.masked += masked
            if units == 0:
                continue
            if generator is None:
                generator = torch.Generator(z.device).manual_seed(0)
            of_batch: dict[str, Tensor] = {}
            for pull, weight in pulls(question.likelihood, estimator, unit, z, targets, counts, n_samples, generator):
                # the weight goes in with the pull, where it costs nothing: what comes back is squared
                for name, part in squares.of(pull * (1 / units if batched else math.sqrt(weight / units))):
                    of_batch[name] = of_batch[name].add_(part) if name in of_batch else part
            sums.add(of_batch, units, weight=1 if batched else units)
    if sums.units == 0:
        raise ValueError("data has no label that counts: it is empty, or all labels are masked")
    F, errors = sums.result(squares.parameters)
    return FisherDiagonal(
        F,
        estimator=estimator,
        likelihood=question.name,
        unit=unit,
        units=sums.units,
        masked_units=sums.masked,
        standard_error=errors,
    )


class _Sums:
    """The mean over batches of what each says, with weights, and its standard error (Welford's recurrences)."""

    def __init__(self) -> None:
        self.units = 0
        self.masked = 0
        self._batches = 0
        self._weight = 0
        self._mean: dict[str, Tensor] = {}
        self._spread: dict[str, Tensor] = {}

    def add(self, of_batch: dict[str, Tensor], units: int, weight: int) -> None:
        self.units += units
        self._batches += 1
        self._weight += weight
        if self._batches == 1:
            self._mean = of_batch
            return
        for name in self._mean.keys() | of_batch.keys():  # a parameter without influence on this batch has F = 0 there
            new = of_batch.get(name)
            mean = self._mean.get(name)
            if mean is None:
                assert new is not None
                mean = self._mean[name] = torch.zeros_like(new)
            difference = -mean if new is None else new.sub_(mean)
            mean.add_(difference, alpha=weight / self._weight)
            share = weight * (self._weight - weight) / self._weight
            if name in self._spread:
                self._spread[name].addcmul_(difference, difference, value=share)
            else:
                self._spread[name] = difference.square_().mul_(share)

    def result(self, parameters: dict[str, nn.Parameter]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """F and its standard errors, zero where a parameter had no influence at all."""

        def complete(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: tensors[name]
                if name in tensors
                else torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
                for name, p in parameters.items()
            }

        if self._batches < 2:
            return complete(self._mean), None
        scale = 1 / ((self._batches - 1) * self._weight)
        return complete(self._mean), complete({name: s.mul_(scale).sqrt_() for name, s in self._spread.items()})
