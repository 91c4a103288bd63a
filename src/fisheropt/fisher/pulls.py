"""What is pulled back through the model for each estimator: gradients with respect to its outputs, with weights.

Every estimator of the diagonal has the form ``sum over j of weight_j (J' v_j)^2`` per example, J the Jacobian of the
outputs, the square elementwise and *after* the sum over the positions of the example:

===========  ==========  ===================================================================  ====================
estimator    unit        v_j                                                                  how many
===========  ==========  ===================================================================  ====================
exact        both        column k of L at position t, zero elsewhere (F_z = L L')             positions x K
mc           both        gradient of -log p of labels drawn from the model, at all positions  n_samples
empirical    example     gradient of -log p of the data's labels, at all positions            1
empirical    token       the same at position t, zero elsewhere                               positions
batched      both        as empirical per example, of the mean over the batch                 1
===========  ==========  ===================================================================  ====================

Given its inputs, a model draws the labels of an example independently, with scores of mean zero: the expectation of
products of scores at different positions vanishes. That is why exact and mc per token are those per example, divided
by labels in place of examples, and why it is not so for the labels of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fisheropt.fisher.diagonal import Estimator, Unit
from fisheropt.fisher.distributions import Likelihood, NegativeLogLikelihood, per_label

__all__ = ["counted_labels", "pulls"]


def counted_labels(likelihood: Likelihood | NegativeLogLikelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    """Of what shape there is one number per label, as ones: (N, *positions)."""
    check = getattr(likelihood, "check", None)
    if check is not None:
        check(outputs, targets)
        shape = outputs.shape[:-1] if outputs.dim() > 1 else outputs.shape
    else:
        shape = _nll(likelihood, outputs, targets).shape
        if len(shape) == 0 or shape[0] != outputs.shape[0]:
            raise ValueError(
                f"likelihood must return one number per label, (N, ...) with N={outputs.shape[0]} examples, got shape "
                f"{tuple(shape)}; use reduction='none'"
            )
    return torch.ones(shape, dtype=torch.bool, device=outputs.device)


def pulls(
    likelihood: Likelihood | NegativeLogLikelihood,
    estimator: Estimator,
    unit: Unit,
    outputs: Tensor,
    targets: Tensor,
    counts: Tensor,
    n_samples: int,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, float]]:
    """The gradients with respect to the outputs, with their weights.

    Args:
        outputs: (N, *positions, K), outside of any graph.
        targets: as the likelihood wants them, with a valid label also where none counts.
        counts: which labels count, (N, *positions), bool.
    """
    full: Any = likelihood
    if estimator == "exact":
        for one in _one_position_at_a_time(counts):
            at = per_label(one.to(outputs.dtype), outputs)
            for k in range(outputs.shape[-1] if outputs.dim() > 1 else 1):
                yield full.column(outputs, k) * at, 1.0
    elif estimator == "mc":
        for _ in range(n_samples):
            yield _score(likelihood, outputs, full.sample(outputs, generator), counts), 1.0 / n_samples
    elif estimator == "empirical" and unit == "token":
        score = _score(likelihood, outputs, targets, counts)
        for one in _one_position_at_a_time(counts):
            yield score * per_label(one.to(outputs.dtype), outputs), 1.0
    else:
        yield _score(likelihood, outputs, targets, counts), 1.0


def _one_position_at_a_time(counts: Tensor) -> Iterator[Tensor]:
    """``counts`` with all but one position cleared, for each position where any label counts."""
    flat = counts.flatten(1) if counts.dim() > 1 else counts.unsqueeze(1)
    for t in flat.any(0).nonzero().flatten().tolist():
        one = torch.zeros_like(flat)
        one[:, t] = flat[:, t]
        yield one.view(counts.shape)


def _score(likelihood: Likelihood | NegativeLogLikelihood, outputs: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """The gradient of the sum of -log p over the labels that count."""
    with torch.enable_grad():
        z = outputs.detach().requires_grad_()
        nll = _nll(likelihood, z, targets)
        (score,) = torch.autograd.grad(torch.where(counts, nll, 0.0).sum(), z)
    return score


def _nll(likelihood: Likelihood | NegativeLogLikelihood, outputs: Tensor, targets: Tensor) -> Tensor:
    return likelihood.nll(outputs, targets) if hasattr(likelihood, "nll") else likelihood(outputs, targets)
