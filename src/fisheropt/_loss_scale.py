"""The scale that mixed-precision training multiplies a loss with, for optimizers that keep squares of its gradients.

An optimizer that sets ``_step_supports_amp_scaling`` is left alone by torch.amp.GradScaler: it finds the scale in its
``grad_scale``, whether a gradient overflowed in ``found_inf``, and the gradients still scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["overflowed", "unscale"]


def overflowed(optimizer: Optimizer) -> bool:
    """Whether the step is to be skipped."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def unscale(
    optimizer: Optimizer, params: Sequence[Tensor], loss_scale: float | Callable[[], float] | None, needed: bool = True
) -> float | Tensor:
    """Divide gradients by the scale that GradScaler left to the optimizer, as it would have.

    Args:
        params: those with a gradient.
        loss_scale: what the user said that the scale is, or None.
        needed: whether the caller has captured anything; if not, no device is made to wait for a scale.

    Returns:
        What the loss was multiplied by before ``backward``, and what was captured in it with it.

    Raises:
        RuntimeError: nobody has said the scale.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if loss_scale is None and scale is None and hasattr(optimizer, "found_inf"):
        raise RuntimeError(
            "the gradients were unscaled before GradScaler.step, which then does not say its scale, and the squares "
            "that were taken in backward need it; say it once, after building both: "
            "optimizer.loss_scale = scaler.get_scale"
        )
    if scale is not None:
        torch._foreach_mul_([p.grad for p in params if p.grad is not None], scale.double().reciprocal().float())
    if not needed:
        return 1.0
    if loss_scale is not None:
        return loss_scale() if callable(loss_scale) else loss_scale
    return 1.0 if scale is None else scale.double()
