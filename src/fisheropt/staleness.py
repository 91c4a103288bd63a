"""How old the f of an optimizer is: what it averaged on its way, against squared gradients at where it is now.

With decay beta2, a squared gradient that is ln 0.5 / ln beta2 steps old has half its weight (692 steps for 0.999). What
is held is compared with the mean over fresh batches; and so that this means something, the fresh batches are cut in two
and the halves compared with each other, which differ by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fisheropt.fisher.compare import FisherComparison, compare_fisher
from fisheropt.fisher.models import undisturbed
from fisheropt.fisher.noise import batch_gradients
from fisheropt.second_moment import second_moment

__all__ = ["Staleness", "held_by", "staleness"]


@dataclass(frozen=True)
class Staleness:
    """What `staleness` found.

    Attributes:
        half_life: in steps, of the first group; inf for beta2 = 1, 0 for beta2 = 0.
        steps: that the optimizer has taken, the most of any parameter.
        held_and_fresh: f held, against the mean of squares over all fresh batches.
        fresh_halves: the two halves of the fresh batches, against each other.
        batches: how many fresh ones.
    """

    half_life: float
    steps: int
    held_and_fresh: FisherComparison
    fresh_halves: FisherComparison
    batches: int


def held_by(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Name -> f, of the trainable parameters of the model that the optimizer has stepped.

    Raises:
        ValueError: there is none: it has not stepped yet, or keeps no average of squared gradients.
    """
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    held = {
        names[p]: f
        for group in optimizer.param_groups
        for p in group["params"]
        if p in names and (f := second_moment(optimizer, p, group)) is not None
    }
    if not held:
        raise ValueError(
            f"{type(optimizer).__name__} holds no average of squared gradients of this model: it has not stepped yet, "
            "steps other parameters, or keeps none"
        )
    return {name: held[name] for name in names.values() if name in held}


def staleness(
    optimizer: Optimizer,
    model: nn.Module,
    data: Iterable[Any],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    top: float = 0.01,
) -> Staleness:
    """Compare the f an optimizer holds with squared gradients of fresh batches at the parameters of now.

    Args:
        optimizer: one with an average of squared gradients that has stepped.
        model: whose parameters it steps. It and its ``.grad`` stay as they are.
        data: batches ``(inputs, targets)`` of the size it was trained with, at least two; more make the control tight.
        loss_fn: ``loss_fn(outputs, targets)``: the loss it was trained with.
        top: as in `compare_fisher`.

    Raises:
        ValueError: nothing is held, or there are fewer than two batches.
    """
    held = held_by(optimizer, model)
    halves: list[dict[str, Tensor]] = [{}, {}]
    k = 0
    with undisturbed(model):
        for _, gradients in batch_gradients(model, data, loss_fn):
            half = halves[k % 2]
            k += 1
            for name in held:
                square = gradients[name].double().square()
                half[name] = half[name].add_(square) if name in half else square
    if k < 2:
        raise ValueError(f"staleness needs at least two batches for its control, got {k}")
    fresh = {name: (halves[0][name] + halves[1][name]) / k for name in held}
    means = [{name: x / n for name, x in half.items()} for half, n in zip(halves, ((k + 1) // 2, k // 2), strict=True)]
    beta2 = float(optimizer.param_groups[0]["betas"][1])
    return Staleness(
        half_life=math.log(0.5) / math.log(beta2) if 0 < beta2 < 1 else (0.0 if beta2 == 0 else math.inf),
        steps=max(int(torch.as_tensor(state["step"])) for state in optimizer.state.values() if "step" in state),
        held_and_fresh=compare_fisher(held, fresh, top=top),
        fresh_halves=compare_fisher(*means, top=top),
        batches=k,
    )
