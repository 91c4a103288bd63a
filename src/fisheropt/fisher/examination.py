"""Which label set a loss is a likelihood over, or which cross-entropy it is: the search behind `likelihood`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fisheropt.fisher import labels
from fisheropt.fisher.identities import (
    Derivatives,
    Identities,
    ScalarLoss,
    derivatives_of,
    draws_of,
    identities_of,
    per_label,
    with_entries,
    with_label,
)
from fisheropt.fisher.labels import LabelSet

__all__ = ["Examination", "Kind", "examine"]

Kind = Literal["discrete", "soft-target", "density", "none"]


@dataclass(frozen=True)
class Examination:
    """What was found: see `fisheropt.fisher.LikelihoodCheck`."""

    kind: Kind
    labels: str
    scale: float
    identities: Identities
    mass: float | None = None
    target: tuple[float, ...] | None = None
    has_term_of_outputs: bool = False


def examine(
    loss: ScalarLoss, z: Tensor, targets: Tensor, n_classes: int | None, generator: torch.Generator
) -> Examination:
    """Find the label set over which the loss is normalised.

    Args:
        loss: of outputs like ``z`` and targets like ``targets``.
        z: (units, ...), float64, finite.
        targets: (units, ...), float64 or int64.
        n_classes: of integer targets, or None: from the shape of ``z``.
        generator: of other outputs, and of directions.

    Raises:
        ValueError: the loss is not finite.
    """
    if not bool(torch.isfinite(loss(z, targets))):
        raise ValueError(
            "the loss is not finite at outputs drawn from a normal distribution; let loss_fn take unconstrained "
            "outputs, for example the logarithm of a variance, or logits instead of probabilities"
        )
    scales = sorted({1.0, float(len(targets)), float(targets.numel())})
    soft = _soft_target_of_example(loss, z, targets, scales, generator)
    if soft is not None:
        return soft
    best: Examination | None = None
    more: Examination | None = None  # than a likelihood: taken for one only if the loss is none over any other labels
    for label_set in _label_sets(z, targets, n_classes):
        entries = _entries_of_a_label(loss, z, targets, label_set)
        if len(entries) == 0:
            continue
        draws, v = draws_of(z, entries, generator)
        placed = partial(with_label, targets)
        derivatives = [derivatives_of(loss, draw, entries, placed, label_set, v) for draw in draws]
        for scale in scales:
            identities = identities_of(derivatives, label_set, scale)
            if identities.spread < label_set.tolerance and identities.score < label_set.tolerance:
                return _likelihood(loss, z, targets, label_set, scale, identities)
            if best is None or identities.spread < best.identities.spread:
                best = Examination("none", label_set.name, scale, identities)
        more = more or _cross_entropy_with_more(derivatives, draws, entries, label_set, scales)
    if best is None:
        raise ValueError("the loss does not depend on the targets")
    return more or best


def _label_sets(z: Tensor, targets: Tensor, n_classes: int | None) -> list[LabelSet]:
    """Those the shapes and dtypes leave, the likeliest first."""
    if targets.is_floating_point() or targets.shape == z.shape:
        likely: list[LabelSet] = []
        if bool(((targets >= 0) & (targets <= 1)).all()):
            likely.append(labels.binary())
        if bool((targets.abs() == 1).all()):
            likely.append(labels.signs())
        if bool(((targets >= 0) & (targets == targets.round())).all()):
            likely += [labels.factorial_counts(), labels.counts()]
        return [*likely, labels.reals()] if targets.is_floating_point() else likely
    if n_classes is None:
        over_dim_1 = z.dim() > 1 and (*z.shape[:1], *z.shape[2:]) == tuple(targets.shape)
        n_classes = z.shape[1] if over_dim_1 else z.shape[-1]
    return [labels.classes(n_classes)]


def _entries_of_a_label(loss: ScalarLoss, z: Tensor, targets: Tensor, label_set: LabelSet) -> Tensor:
    """Where in the flattened outputs the gradient depends on the first label: the outputs that speak of it."""
    middle = len(label_set.values) // 2
    few = label_set.values[middle - 6000 : middle + 6001 : 1500] if label_set.continuous else label_set.values

    def gradient(label: Tensor) -> tuple[Tensor, ...]:
        return (torch.func.grad(loss)(z, with_label(targets, label)),)

    (g,) = per_label(gradient, few, z)
    varies = (g - g[:1]).abs().flatten(1).amax(0) > 1e-12 * g.abs().max()
    return varies.nonzero().squeeze(1)


def _likelihood(
    loss: ScalarLoss, z: Tensor, targets: Tensor, label_set: LabelSet, scale: float, identities: Identities
) -> Examination:
    kind: Kind = "density" if label_set.continuous else "discrete"
    target = None
    known = torch.isin(targets, label_set.values.to(targets))
    if kind == "discrete" and label_set.name == "{0, 1}" and not bool(known.all()):
        kind = "soft-target"  # the loss is one, but the labels given are in between
        q = float(targets[~known][0])
        target = (1 - q, q)
    return Examination(kind, label_set.name, scale, identities, _mass(loss, z, targets, label_set, scale), target)


def _mass(loss: ScalarLoss, z: Tensor, targets: Tensor, label_set: LabelSet, scale: float) -> float | None:
    """Z of a single label, where one unit has a single one."""
    if targets[:1].numel() != 1:
        return None
    one, its = z[:1], targets[:1]
    (values,) = per_label(lambda label: (loss(one, with_label(its, label)),), label_set.values, one)
    return float((label_set.log_weights.to(values) - values).logsumexp(0).exp())


# -- cross-entropies that are no likelihood of a label ----------------------------------------------------------------


def _soft_target_of_example(
    loss: ScalarLoss, z: Tensor, targets: Tensor, scales: list[float], generator: torch.Generator
) -> Examination | None:
    """Whether targets of the outputs' shape are distributions over dimension 1 that softmax(z) is drawn to."""
    if not (targets.is_floating_point() and targets.shape == z.shape and z.dim() > 1 and z.shape[1] > 1):
        return None
    n = z.shape[1]
    first = torch.arange(z.numel(), device=z.device).reshape(z.shape).movedim(1, -1).reshape(-1, n)[0]
    q = targets.reshape(-1)[first]
    if not (bool((q >= 0).all()) and abs(float(q.sum()) - 1) < 1e-6):
        return None
    draws, v = draws_of(z, first, generator)
    gradients = torch.stack([torch.func.grad(loss)(draw, targets).detach().reshape(-1)[first] for draw in draws])
    label_set, corners = labels.classes(n), torch.eye(n, dtype=targets.dtype, device=targets.device)

    def corner(k: Tensor) -> Tensor:
        return with_entries(targets, first, corners[k])

    for scale in sorted({*scales, targets.numel() / n}):
        found = _target(draws, first, gradients, scale)
        if found is None:
            continue
        # what the loss is for labels, which are the corners of the simplex the targets are in
        derivatives = [derivatives_of(loss, draw, first, corner, label_set, v) for draw in draws]
        identities = identities_of(derivatives, label_set, scale)
        if float(found.max()) > 1 - 1e-9:
            return Examination("discrete", label_set.name, scale, identities)
        return Examination("soft-target", label_set.name, scale, identities, target=tuple(found.tolist()))
    return None


def _target(draws: list[Tensor], entries: Tensor, gradients: Tensor, scale: float) -> Tensor | None:
    """``q = softmax(z) - a grad l``, with the sigmoid for one entry, if it is a distribution and the same for all."""
    at = torch.stack([draw.reshape(-1)[entries] for draw in draws])  # (draws, entries)
    p = at.softmax(1) if at.shape[1] > 1 else at.sigmoid()
    q = p - scale * gradients
    if float((q - q[:1]).abs().max()) > 1e-6 or float(q.min()) < -1e-6 or float(q.max()) > 1 + 1e-6:
        return None
    return q[0].clamp(0, 1) if len(entries) > 1 else torch.cat([1 - q[0], q[0]]).clamp(0, 1)


def _cross_entropy_with_more(
    derivatives: list[Derivatives], draws: list[Tensor], entries: Tensor, label_set: LabelSet, scales: list[float]
) -> Examination | None:
    """A softmax or sigmoid cross-entropy whose labels are smoothed, or to which a term of the outputs is added."""
    n = len(label_set.values)
    if label_set.continuous or n > 2 * len(entries) or (len(entries) > 1 and n != len(entries)):
        return None
    gradients = torch.stack([d.gradient for d in derivatives])  # (draws, labels, entries)
    for scale in scales:
        identities = identities_of(derivatives, label_set, scale)
        targets = [_target(draws, entries, gradients[:, i], scale) for i in range(n)]
        if all(q is not None for q in targets):
            assert targets[0] is not None
            return Examination("soft-target", label_set.name, scale, identities, None, tuple(targets[0].tolist()))
        # what is left of label i but not of label j is e_j - e_i: the odds of two labels are those of the softmax
        odds = scale * (gradients[:, :1] - gradients)
        unit = torch.eye(n, dtype=odds.dtype, device=odds.device) if len(entries) > 1 else label_set.values[:, None]
        if float((odds - (unit - unit[:1])).abs().max()) < 1e-6:
            return Examination("discrete", label_set.name, scale, identities, has_term_of_outputs=True)
    return None
