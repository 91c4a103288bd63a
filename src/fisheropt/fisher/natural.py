"""The natural gradient: a gradient measured in the exact Fisher information of the model on data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fisheropt.fisher.diagonal import Unit
from fisheropt.fisher.matrix import fisher_matrix
from fisheropt.fisher.models import trainable
from fisheropt.fisher.product import FisherProduct
from fisheropt.fisher.questions import Mask

__all__ = ["natural_gradient"]


def natural_gradient(
    model: nn.Module,
    data: Iterable[Any],
    grad: Mapping[str, Tensor],
    damping: float,
    *,
    solver: Literal["cg", "dense"] = "cg",
    likelihood: Literal["categorical", "bernoulli", "gaussian"] = "categorical",
    unit: Unit = "example",
    mask: Mask | None = None,
    ignore_index: int = -100,
    max_examples: int | None = None,
    tolerance: float = 1e-6,
    max_iterations: int | None = None,
) -> dict[str, Tensor]:
    """``(F + damping I)^-1 grad`` with the exact Fisher information of the model on ``data``.

    Args:
        model, data, likelihood, unit, mask, ignore_index, max_examples: as for `fisher_diag`.
        grad: name -> gradient, for every trainable parameter.
        damping: lambda > 0, in the units of F.
        solver: ``"cg"``: conjugate gradients on products with F (jvp, F_z, vjp), for any model; ``"dense"``: a Cholesky
            factorisation of `fisher_matrix`, for small ones.
        tolerance: ``"cg"`` ends where the residual is this small relative to ``grad``, > 0.
        max_iterations: ``"cg"`` ends after so many at the latest; None: as many as there are parameters.

    Returns:
        name -> direction. Descent is ``p - lr * direction``.

    Raises:
        ValueError: damping is not positive, grad lacks a parameter or has another shape, or as `fisher_diag`.

    Warns:
        RuntimeWarning: ``"cg"`` ended before the tolerance was met; the message has the residual.
    """
    if not (isinstance(damping, int | float) and 0 < damping < math.inf):
        raise ValueError(f"damping must be a finite number > 0, got {damping!r}")
    if solver not in ("cg", "dense"):
        raise ValueError(f"solver must be 'cg' or 'dense', got {solver!r}")
    params = trainable(model)
    for name, p in params.items():
        if name not in grad or grad[name].shape != p.shape:
            found = tuple(grad[name].shape) if name in grad else None
            raise ValueError(f"grad must have {name!r} in shape {tuple(p.shape)}, got {found}")
    how: dict[str, Any] = {
        "likelihood": likelihood,
        "unit": unit,
        "mask": mask,
        "ignore_index": ignore_index,
        "max_examples": max_examples,
    }
    if solver == "dense":
        F = fisher_matrix(model, data, **how)
        F.diagonal().add_(damping)
        b = torch.cat([grad[name].detach().reshape(-1) for name in params]).to(F)
        x = torch.cholesky_solve(b.unsqueeze(1), torch.linalg.cholesky(F)).squeeze(1)
        parts = torch.split(x, [p.numel() for p in params.values()])
        return {name: part.view(p.shape).to(p.dtype) for (name, p), part in zip(params.items(), parts, strict=True)}
    limit = sum(p.numel() for p in params.values()) if max_iterations is None else max_iterations
    product = FisherProduct(model, data, **how)
    return _conjugate_gradients(product, {name: grad[name].detach() for name in params}, damping, tolerance, limit)


def _conjugate_gradients(
    product: FisherProduct, b: dict[str, Tensor], damping: float, tolerance: float, limit: int
) -> dict[str, Tensor]:
    """Solve (F + damping I) x = b (Hestenes and Stiefel 1952)."""
    x = {name: torch.zeros_like(t) for name, t in b.items()}
    r = {name: t.clone() for name, t in b.items()}
    d = dict(r)
    rr = start = _dot(r, r)
    for _ in range(limit):
        if rr <= tolerance**2 * start:
            return x
        Fd = product(d)
        Ad = {name: Fd[name] + damping * t for name, t in d.items()}
        alpha = rr / _dot(d, Ad)
        x = {name: t + alpha * d[name] for name, t in x.items()}
        r = {name: t - alpha * Ad[name] for name, t in r.items()}
        rr, last = _dot(r, r), rr
        d = {name: t + (rr / last) * d[name] for name, t in r.items()}
    if rr > tolerance**2 * start:
        warnings.warn(
            f"conjugate gradients ended after {limit} iterations with a relative residual of "
            f"{math.sqrt(rr / start):.1e}, not {tolerance:.1e}; raise max_iterations, tolerance or damping",
            RuntimeWarning,
            stacklevel=3,
        )
    return x


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))
