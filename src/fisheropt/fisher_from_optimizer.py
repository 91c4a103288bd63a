"""The Fisher information that an optimizer has gathered in passing, in the units of an estimate on data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt.fisher.diagonal import FisherDiagonal, Unit
from fisheropt.second_moment import second_moment

__all__ = ["fisher_from_optimizer"]


@torch.no_grad()
def fisher_from_optimizer(
    optimizer: Optimizer,
    model: nn.Module | None = None,
    *,
    batch_size: int,
    likelihood: str = "categorical",
    unit: Unit = "example",
) -> FisherDiagonal:
    """B f: the unbiased average of squared gradients that an optimizer holds, times its batch size.

    f averages squares of *batch-mean* gradients. For a mean loss over B independent units whose gradients have mean mu
    and variance s2, one such square is ``s2/B + mu^2`` in expectation, and the empirical Fisher is ``s2 + mu^2``. So
    B f estimates the empirical Fisher with these biases, which nothing in the state can remove:

    * it is too large by ``(B - 1) mu^2``, little near a minimum of the training loss and much far from it;
    * it is the Fisher of the parameters of the last 1/(1 - beta2) steps, not of those that are there now;
    * it is of the labels of the data, and shrinks to zero as they are fitted; the Fisher of the model need not;
    * of FAdafactor it is the rank-one approximation, with the right sums of rows and columns.

    Args:
        optimizer: `fisheropt.FAdam`, `fisheropt.FAdafactor`, one of `fisheropt.baselines` with a second moment, or
            torch's Adam or AdamW, whose state is corrected for its start. Smaller state (bfloat16, 8-bit) is widened.
        model: whose names to use. None: those that the optimizer was given, ``FAdam(model.named_parameters())``.
        batch_size: B, how many units the mean of the loss is over, >= 1; with gradient accumulation or data-parallel
            processes, of all together; with ``fisher="microbatch"``, of one micro-batch on one process. A loss that is
            a sum over units has B = 1.
        likelihood: what the loss is -log p of, for the record.
        unit: what the loss is a mean over: ``"example"``, or ``"token"`` where B counts tokens.

    Returns:
        The diagonal, with ``estimator="optimizer"`` and ``units`` = B times the largest number of steps. Parameters
        that have not been stepped are absent.

    Raises:
        ValueError: the batch size is below 1, no names are to be had, or no parameter has a second moment yet.
        TypeError: a parameter is a DTensor.

    Source: SPEC section 5; Hwang, arXiv:2405.12807, Equations 20, 21 and 58.

    Example:
        >>> import torch, fisheropt
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = fisheropt.FAdam(model.parameters())
        >>> torch.nn.functional.cross_entropy(model(torch.ones(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
        >>> optimizer.step()
        >>> fisheropt.fisher_from_optimizer(optimizer, model, batch_size=8)["weight"].shape
        torch.Size([2, 4])
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
    names = None if model is None else {p: name for name, p in model.named_parameters()}
    values: dict[str, Tensor] = {}
    steps = 0
    for group in optimizer.param_groups:
        for name, p in _named(group, names):
            f = second_moment(optimizer, p, group)
            if f is not None:
                values[name] = f * batch_size
                steps = max(steps, int(optimizer.state[p]["step"]))
    if not values:
        raise ValueError(
            f"{type(optimizer).__name__} holds no average of squared gradients: it has taken no step yet, keeps none, "
            "or has no parameter of the model"
        )
    if names is not None:  # in the order of the model
        values = {name: values[name] for name in names.values() if name in values}
    return FisherDiagonal(values, estimator="optimizer", likelihood=likelihood, unit=unit, units=batch_size * steps)


def _named(group: Mapping[str, Any], names: Mapping[nn.Parameter, str] | None) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a group that have a name."""
    if names is not None:
        return [(names[p], p) for p in group["params"] if p in names]
    if "param_names" not in group:
        raise ValueError(
            "the optimizer knows no names: pass the model too, or build it from model.named_parameters() "
            "(torch 2.6 and later keep the names)"
        )
    return list(zip(group["param_names"], group["params"], strict=True))
