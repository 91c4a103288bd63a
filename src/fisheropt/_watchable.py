"""Which models an optimizer can watch, and what is said of the others."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["unwrapped"]


def unwrapped(model: nn.Module, optimizer: str) -> tuple[nn.Module, Any]:
    """The model inside DistributedDataParallel, and its process group; the model itself and None without.

    Raises:
        TypeError: it is no module, or wrapped in something that cannot be watched.
        ValueError: it is compiled already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{optimizer} takes the model, not its parameters, got {type(model).__name__}; "
            "parameter groups go to params="
        )
    inner, group = (model.module, model.process_group) if isinstance(model, DistributedDataParallel) else (model, None)
    for module in inner.modules():
        kind = type(module).__name__
        if isinstance(module, nn.DataParallel):
            raise TypeError(f"{optimizer} cannot watch the replicas of DataParallel; use DistributedDataParallel")
        if isinstance(module, DistributedDataParallel) or kind == "FullyShardedDataParallel":
            raise TypeError(f"{optimizer} does not take a model with {kind} inside it; wrap the whole model in DDP")
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"the model is compiled, and what is compiled does not look for new hooks: build {optimizer} with the "
                "plain model first, then compile it"
            )
    return inner, group
