"""The identities a negative log-likelihood satisfies, and by how much a loss misses them: see `likelihood`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fisheropt.fisher.labels import LabelSet

__all__ = [
    "Derivatives",
    "Identities",
    "ScalarLoss",
    "derivatives_of",
    "draws_of",
    "identities_of",
    "per_label",
    "with_entries",
    "with_label",
]

ScalarLoss = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)`` -> 0-d."""

_DRAWS = 4  # outputs at which Z must agree
_DIRECTIONS = 3  # in which the derivatives are taken
_HELD = 1 << 22  # elements of outputs at a time
_NOTHING_LEFT = 1e-3  # share of Z that the last labels of an infinite set may have


class Identities(NamedTuple):
    """By how much they fail. All zero for a smooth likelihood.

    Attributes:
        spread: of log Z over the draws, nats; inf if Z is no finite number.
        score: ``max |E[v' grad l]| / rms(v' grad l)``.
        information: ``max |a E[(v' grad l)^2] - E[v' H v]| / (a E[(v' grad l)^2])``; NaN if torch cannot take it.
    """

    spread: float
    score: float
    information: float


def with_label(targets: Tensor, label: Tensor) -> Tensor:
    """The targets with another first one."""
    flat = torch.cat([label.reshape(1).to(targets.dtype), targets.reshape(-1)[1:]])
    return flat.reshape(targets.shape)


def with_entries(z: Tensor, entries: Tensor, values: Tensor) -> Tensor:
    """The outputs with these values at these entries."""
    return z.reshape(-1).index_put((entries,), values.to(z)).reshape(z.shape)


def draws_of(z: Tensor, entries: Tensor, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Outputs that differ at these entries, and directions, (directions, entries)."""
    n = len(entries)
    draws = [with_entries(z, entries, torch.randn(n, dtype=z.dtype, generator=generator)) for _ in range(_DRAWS)]
    return draws, torch.randn(_DIRECTIONS, n, dtype=z.dtype, generator=generator).to(z.device)


def per_label(function: Callable[[Tensor], tuple[Tensor, ...]], values: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """``function`` of every label, stacked; at once where the loss lets itself be vectorised."""
    values = values.to(z.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that vectorise badly
        try:
            columns: tuple[Tensor, ...] = torch.func.vmap(function, chunk_size=max(1, _HELD // z.numel()))(values)
        except RuntimeError:  # a loss that looks at its values
            columns = tuple(torch.stack(column) for column in zip(*map(function, values), strict=True))
    return tuple(column.detach() for column in columns)  # parameters in the loss would give them a graph


class Derivatives(NamedTuple):
    """At one draw of the outputs, for each of n labels."""

    value: Tensor  # (n,)
    gradient: Tensor  # (n, entries)
    slope: Tensor  # (n, directions): v' grad l
    curvature: Tensor  # (n, directions): v' H v


def derivatives_of(
    loss: ScalarLoss, z: Tensor, entries: Tensor, placed: Callable[[Tensor], Tensor], label_set: LabelSet, v: Tensor
) -> Derivatives:
    """``placed(label)``: the targets with this label in the first place."""
    here = z.reshape(-1)[entries]

    def of(label: Tensor) -> tuple[Tensor, ...]:
        def at(x: Tensor) -> Tensor:
            return loss(with_entries(z, entries, x), placed(label))

        g, value = torch.func.grad_and_value(at)(here)
        try:
            products = [torch.func.grad(lambda x, v=v: torch.func.grad(at)(x) @ v)(here) @ v for v in v]
        except RuntimeError:  # torch has no second derivative of it
            products = [torch.full_like(value, torch.nan) for _ in v]
        return value, g, v @ g, torch.stack(products)

    return Derivatives(*per_label(of, label_set.values, z))


def identities_of(derivatives: list[Derivatives], label_set: LabelSet, scale: float) -> Identities:
    log_masses, scores, informations = [], [0.0], []
    low, high = label_set.edges
    for value, _, slope, curvature in derivatives:
        log_p = label_set.log_weights.to(value) - scale * value
        log_mass = log_p.logsumexp(0)
        p = (log_p - log_mass).exp()
        edges = p[:low].sum() + p[len(p) - high :].sum()
        if not bool(torch.isfinite(log_mass)) or float(edges) > _NOTHING_LEFT:
            return Identities(math.inf, math.inf, math.inf)
        log_masses.append(float(log_mass))
        weighted = p[:, None].expand_as(slope)
        square = torch.where(weighted > 0, weighted * slope.square(), 0.0).sum(0)  # beyond the reach of p, 0 times inf
        mean = torch.where(weighted > 0, weighted * slope, 0.0).sum(0)
        hessian = torch.where(weighted > 0, weighted * curvature, 0.0).sum(0)
        if bool((square > 0).all()):
            scores.append(float((mean.abs() / square.sqrt()).max()))
            informations.append(((scale * square - hessian).abs() / (scale * square)).max())
    information = float(torch.stack(informations).max()) if informations else 0.0  # NaN without second derivatives
    return Identities(max(log_masses) - min(log_masses), max(scores), information)
