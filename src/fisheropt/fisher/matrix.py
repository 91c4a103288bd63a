"""The whole Fisher information matrix of a small model: ``F = 1/U sum_u J_u' F_z J_u``, example by example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fisheropt.fisher.batches import Batch, batches, per_example, rows
from fisheropt.fisher.diagonal import Unit
from fisheropt.fisher.distributions import NegativeLogLikelihood
from fisheropt.fisher.models import check_model, check_outputs, outputs_with, stand_ins, undisturbed
from fisheropt.fisher.pulls import pulls
from fisheropt.fisher.questions import Mask, asked

__all__ = ["fisher_matrix"]

_LARGEST = 20_000  # parameters of a dense matrix: 3.2 GB in float64


def fisher_matrix(
    model: nn.Module,
    data: Iterable[Any],
    *,
    likelihood: Literal["categorical", "bernoulli", "gaussian"] | NegativeLogLikelihood = "categorical",
    estimator: Literal["exact", "mc", "empirical"] = "exact",
    n_samples: int = 1,
    unit: Unit = "example",
    mask: Mask | None = None,
    ignore_index: int = -100,
    max_examples: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Fisher information matrix of all trainable parameters, (n, n): for small models, example by example.

    Rows and columns are the parameters in the order of ``model.named_parameters()``, each flattened. Arguments and
    errors are those of `fisher_diag`, whose result is the diagonal, except that labels that are drawn differ.

    Raises:
        ValueError: as `fisher_diag`, and: the model has more than 20 000 trainable parameters.
    """
    question = asked(
        likelihood,
        unit,
        mask,
        ignore_index,
        estimator=estimator,
        estimators=("exact", "mc", "empirical"),
        n_samples=n_samples,
        max_examples=max_examples,
    )
    check_model(model)
    leaves = stand_ins(model)
    numbers = sum(p.numel() for p in leaves.values())
    if numbers > _LARGEST:
        raise ValueError(
            f"a matrix of {numbers} x {numbers} numbers is too large; fisher_diag has its diagonal, natural_gradient "
            "(solver='cg') products with it"
        )
    first = next(iter(leaves.values()))
    F = torch.zeros(numbers, numbers, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    total = 0
    with undisturbed(model):
        for one in _one_by_one(data, max_examples):
            outputs = outputs_with(model, leaves, one.inputs)
            check_outputs(outputs, 1)
            z = outputs.detach()
            counts, targets = question.labels(z, one)
            total += question.units(counts)[0]
            if generator is None:
                generator = torch.Generator(z.device).manual_seed(0)
            for pull, weight in pulls(question.likelihood, estimator, unit, z, targets, counts, n_samples, generator):
                score = _flat_gradient(outputs, leaves, pull).to(F.dtype)
                F.addr_(score, score, alpha=weight)
    if total == 0:
        raise ValueError("data has no label that counts: it is empty, or all labels are masked")
    return F.div_(total)


def _one_by_one(data: Iterable[Any], max_examples: int | None) -> Iterator[Batch]:
    """The examples, each as a batch."""
    for inputs, targets, size in batches(data, max_examples):
        for i in range(size):
            yield Batch(per_example(inputs, size, rows(i, i + 1)), targets[i : i + 1], 1)


def _flat_gradient(outputs: Tensor, leaves: Mapping[str, Tensor], pull: Tensor) -> Tensor:
    found = torch.autograd.grad(outputs, list(leaves.values()), pull, retain_graph=True, allow_unused=True)
    pairs = zip(leaves.values(), found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs])
