"""Products with the exact Fisher information of a model, without forming it, and the KL divergence it stands for.

F v = 1/U sum_u J_u' F_z J_u v: u = J v (jvp), w = F_z u, J' w (vjp)         categorical: F_z = diag(p) - p p'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fisheropt.fisher.batches import batches
from fisheropt.fisher.diagonal import Unit
from fisheropt.fisher.distributions import full_likelihood_of, per_label
from fisheropt.fisher.models import call, check_model, outputs_with, stand_ins, trainable, undisturbed
from fisheropt.fisher.questions import Mask, asked

__all__ = ["FisherProduct"]


class FisherProduct:
    """``product(v)`` = F v, F the exact Fisher information on ``data``, without forming F.

    Args:
        model, data, likelihood, unit, mask, ignore_index, max_examples: as for `fisher_diag`; data is kept.

    Attributes:
        units: how many F averages over.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        *,
        likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical",
        unit: Unit = "example",
        mask: Mask | None = None,
        ignore_index: int = -100,
        max_examples: int | None = None,
    ) -> None:
        self._likelihood = full_likelihood_of(likelihood, "products with the Fisher information")
        question = asked(
            likelihood, unit, mask, ignore_index, estimator="exact", estimators=("exact",), max_examples=max_examples
        )
        check_model(model)
        self._model = model
        self._params = trainable(model)
        self._batches: list[tuple[Any, Tensor]] = []
        self.units = 0
        with undisturbed(model), torch.no_grad():
            for batch in batches(data, max_examples):
                counts, _ = question.labels(call(model, batch.inputs), batch)
                self.units += question.units(counts)[0]
                self._batches.append((batch.inputs, counts))
        if self.units == 0:
            raise ValueError("data has no label that counts: it is empty, or all labels are masked")

    def __call__(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """F v. ``v``: name -> tensor for every trainable parameter."""
        total = {name: torch.zeros_like(p, requires_grad=False) for name, p in self._params.items()}
        with undisturbed(self._model):
            leaves = stand_ins(self._model)
            for inputs, counts in self._batches:
                outputs, u = self._pushed(leaves, inputs, v)
                w = self._likelihood.product(outputs.detach(), u) * per_label(counts, outputs)
                found = torch.autograd.grad(outputs, list(leaves.values()), w, allow_unused=True)
                for name, g in zip(total, found, strict=True):
                    if g is not None:
                        total[name] += g.detach() / self.units
        return total

    def quadratic(self, v: Mapping[str, Tensor]) -> float:
        """v' F v, in float64, by the outputs alone."""
        total = 0.0
        with undisturbed(self._model):
            leaves = stand_ins(self._model)
            for inputs, counts in self._batches:
                outputs, u = self._pushed(leaves, inputs, v)
                w = self._likelihood.product(outputs.detach().double(), u.double()) * per_label(counts, outputs)
                total += float((u.double() * w).sum())
        return total / self.units

    def kl(self, v: Mapping[str, Tensor]) -> float:
        """KL(p_theta || p_(theta + v)) per unit, in nats."""
        total = 0.0
        with undisturbed(self._model), torch.no_grad():
            here = {name: p.detach() for name, p in self._params.items()}
            there = {name: p + v[name] for name, p in here.items()}
            for inputs, counts in self._batches:
                z, moved = (outputs_with(self._model, at, inputs) for at in (here, there))
                total += float(self._likelihood.kl(z.double(), moved.double())[counts].sum())
        return total / self.units

    def _pushed(self, leaves: dict[str, Tensor], inputs: Any, v: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs and J v, the derivative of the outputs along v: that of J' a, linear in a, with respect to a."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention can be differentiated once only
            outputs = outputs_with(self._model, leaves, inputs)
            a = torch.zeros_like(outputs, requires_grad=True)
            names = list(leaves)
            pulled = torch.autograd.grad(outputs, [leaves[n] for n in names], a, create_graph=True, allow_unused=True)
            along = [(g, v[n]) for n, g in zip(names, pulled, strict=True) if g is not None]
            (u,) = torch.autograd.grad([g for g, _ in along], a, [x.to(g.dtype) for g, x in along], retain_graph=True)
        return outputs, u
