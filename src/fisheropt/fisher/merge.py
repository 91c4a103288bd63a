"""Merge models of one architecture by what each of them knows (Matena and Raffel 2022, arXiv:2111.09832, Equation 4).

The product of the models' Gaussian posteriors, with Fisher diagonals F_i for precisions and coefficients lambda_i, has
its mode at::

    theta = sum of lambda_i F_i theta_i / sum of lambda_i F_i            elementwise

Where no model has any Fisher information the quotient says nothing, and the models are averaged by the lambda_i alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["fisher_merge"]

Rest = Literal["raise", "average", "first"]


@torch.no_grad()
def fisher_merge(
    models: Sequence[nn.Module | Mapping[str, Tensor]],
    fishers: Sequence[Mapping[str, Tensor]],
    coefficients: Sequence[float] | None = None,
    *,
    rest: Rest = "raise",
) -> dict[str, Tensor]:
    """The Fisher-weighted average of models, as a new state dict for `load_state_dict`.

    Args:
        models: two or more, as modules or state dicts, with the same names and shapes.
        fishers: for each of them name -> F (a `FisherDiagonal` or any mapping), all with the same names. They must be
            on one scale: the same estimator and unit. Of tied weights one name is enough.
        coefficients: lambda_i >= 0, not all 0; None: equal. Only their ratios matter.
        rest: what becomes of entries without F, such as the buffers of BatchNorm, where the models differ in them:
            "raise"; "average" by the coefficients, which for a variance leaves out that the means differ; or take
            that of the "first" model. Integer entries that differ cannot be averaged. Statistics of BatchNorm are
            best computed anew, by passing data through the merged model in training mode.

    Returns:
        Name -> tensor, in the dtype and on the device of the first model, sharing no memory with any; weights that are
        tied in the first model are equal.

    Raises:
        ValueError: the models, or the Fishers, do not fit one another, or an option is out of its range.
    """
    states = [m.state_dict() if isinstance(m, nn.Module) else m for m in models]
    lambdas = _coefficients(coefficients, len(states))
    if len(states) < 2 or len(fishers) != len(states):
        raise ValueError(
            f"fisher_merge takes two or more models and as many fishers, got {len(states)} and {len(fishers)}"
        )
    if rest not in ("raise", "average", "first"):
        raise ValueError(f"rest must be 'raise', 'average' or 'first', got {rest!r}")
    _check_names(states, fishers)
    first = states[0]
    tied = {_memory(first[name]): name for name in fishers[0]}
    merged: dict[str, Tensor] = {}
    for name, tensor in first.items():
        values = [state[name].to(tensor.device) for state in states]
        owner = name if name in fishers[0] else tied.get(_memory(tensor))
        if owner is not None:
            weights = [
                c * fisher[owner].to(tensor.device, torch.float64) for c, fisher in zip(lambdas, fishers, strict=True)
            ]
            merged[name] = _weighted(values, weights, lambdas).to(tensor.dtype)
        else:
            merged[name] = _without_fisher(name, values, lambdas, rest)
    return merged


def _weighted(values: Sequence[Tensor], weights: Sequence[Tensor], lambdas: Sequence[float]) -> Tensor:
    """The weighted mean in float64, elementwise; by ``lambdas`` where all weights are 0."""
    total = torch.stack(list(weights)).sum(0)
    shares = [torch.where(total > 0, w / total, c) for w, c in zip(weights, lambdas, strict=True)]
    return torch.stack([s * v.double() for s, v in zip(shares, values, strict=True)]).sum(0)


def _without_fisher(name: str, values: Sequence[Tensor], lambdas: Sequence[float], rest: Rest) -> Tensor:
    if rest == "first" or all(torch.equal(values[0], value) for value in values[1:]):
        return values[0].detach().clone()
    if rest == "raise":
        raise ValueError(
            f"the models differ in {name!r}, which has no Fisher information; "
            "rest='average' averages such entries, rest='first' takes them from the first model"
        )
    if not values[0].is_floating_point():
        raise ValueError(
            f"the models differ in {name!r} of dtype {values[0].dtype}, which has no average; use rest='first'"
        )
    return torch.stack([c * v.double() for c, v in zip(lambdas, values, strict=True)]).sum(0).to(values[0].dtype)


def _coefficients(coefficients: Sequence[float] | None, models: int) -> list[float]:
    """Which sum to one."""
    given = [1.0] * models if coefficients is None else list(coefficients)
    if len(given) != models:
        raise ValueError(f"coefficients must be one per model, got {len(given)} for {models}")
    if not all(0 <= c < math.inf for c in given) or sum(given) == 0:
        raise ValueError(f"coefficients must be finite, >= 0 and not all 0, got {given}")
    return [c / sum(given) for c in given]


def _check_names(states: Sequence[Mapping[str, Tensor]], fishers: Sequence[Mapping[str, Tensor]]) -> None:
    shapes = {name: tensor.shape for name, tensor in states[0].items()}
    for i, state in enumerate(states[1:], start=1):
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise ValueError(f"model {i} has other names or shapes than model 0: {_difference(shapes, state)}")
    for i, fisher in enumerate(fishers):
        if fisher.keys() != fishers[0].keys():
            raise ValueError(f"fisher {i} has other names than fisher 0: {_difference(fishers[0], fisher)}")
        for name, F in fisher.items():
            if name not in shapes:
                raise ValueError(f"fisher {i} has {name!r}, which no model has; its names are those of state_dict()")
            if F.shape != shapes[name]:
                raise ValueError(
                    f"fisher {i} has shape {tuple(F.shape)} for {name!r}, the models {tuple(shapes[name])}"
                )
            if not bool((F.isfinite() & (F >= 0)).all()):
                raise ValueError(f"fisher {i} must be finite and >= 0, and is not in {name!r}")


def _difference(a: Mapping[str, object], b: Mapping[str, object]) -> str:
    names = sorted(a.keys() ^ b.keys())
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "the shapes"


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """The same for tensors that are tied: one memory, seen in one way."""
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
