"""How much of the Fisher information a diagonal leaves out: the share of its squared Frobenius norm off the diagonal.

For the block F of one parameter tensor, n by n::

    mass = 1 - sum_i F_ii^2 / sum_ij F_ij^2                             in [0, 1 - 1/n]; 0: F is diagonal

The denominator is the mean of |F v|^2 over vectors v of independent signs (Hutchinson), and exactly the sum of
|F e_i|^2 over the unit vectors where there are no more of these than probes. A product F v costs two passes back and
forth, F is never formed. Entries between tensors are not counted: this is about what is lost inside each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fisheropt.fisher.batches import batches
from fisheropt.fisher.estimate import fisher_diag
from fisheropt.fisher.models import trainable
from fisheropt.fisher.product import FisherProduct

__all__ = ["OffDiagonal", "offdiagonal_mass"]


class OffDiagonal(NamedTuple):
    """Of the block of one tensor.

    Attributes:
        entries: n.
        mass: the share off the diagonal, in [0, 1).
        standard_error: of it, from the spread over probes; 0 where it is exact.
        frobenius: |F|, in [1]/[p]^2.
    """

    entries: int
    mass: float
    standard_error: float
    frobenius: float


def offdiagonal_mass(
    model: nn.Module,
    data: Iterable[Any],
    *,
    likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical",
    probes: int = 32,
    diagonal: Mapping[str, Tensor] | None = None,
    max_examples: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, OffDiagonal]:
    """Of each trainable tensor, the share of its block's squared Frobenius norm that lies off the diagonal.

    Args:
        model, data, likelihood, max_examples: as for `fisher_diag` with ``estimator="exact"``; an iterator is kept.
        probes: vectors per tensor, >= 2; tensors with no more entries are done exactly. Each goes over the data once.
        diagonal: the exact diagonal per example, if known already; one that is sampled makes the mass too small.
        generator: of the signs. None: a new one, seeded with 0.

    Raises:
        ValueError: ``probes`` is below 2; and as `fisher_diag`.
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes!r}")
    kept = [(batch.inputs, batch.targets) for batch in batches(data, max_examples)]
    product = FisherProduct(model, kept, likelihood=likelihood)
    if diagonal is None:
        diagonal = fisher_diag(model, kept, likelihood=likelihood)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    params = trainable(model)
    result = {}
    for name, p in params.items():
        n = p.numel()
        others = {other: torch.zeros_like(q) for other, q in params.items() if other != name}
        squares = [
            float(product({**others, name: v})[name].double().square().sum()) for v in _probes(p, probes, generator)
        ]
        exact = n <= probes
        norm2 = sum(squares) if exact else sum(squares) / probes
        on = float(diagonal[name].double().square().sum())
        error = 0.0 if exact else math.sqrt(sum((x - norm2) ** 2 for x in squares) / (probes * (probes - 1)))
        share = on / norm2 if norm2 else 1.0
        result[name] = OffDiagonal(n, max(0.0, 1 - share), share * error / norm2 if norm2 else 0.0, math.sqrt(norm2))
    return result


def _probes(p: Tensor, probes: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Unit vectors if there are few, else random signs."""
    n = p.numel()
    for i in range(min(n, probes)):
        if n <= probes:
            v = torch.zeros(n, dtype=p.dtype)
            v[i] = 1
        else:
            v = torch.randint(0, 2, (n,), generator=generator).to(p.dtype) * 2 - 1
        yield v.reshape(p.shape).to(p.device)
