"""Which models an optimizer can watch, and what is said of the others."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fisheropt._dtensor import data_parallel_groups

__all__ = ["unwrapped"]


def unwrapped(model: nn.Module, optimizer: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model inside DistributedDataParallel, or the model itself, and the process groups of DDP or of FSDP2.

    Raises:
        TypeError: it is no module, or wrapped in something that cannot be watched, or sharded by something else than
            FSDP2.
        ValueError: it is compiled already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{optimizer} takes the model, not its parameters, got {type(model).__name__}; "
            "parameter groups go to params="
        )
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    groups = data_parallel_groups(inner)
    if groups is None or (groups and inner is not model):
        raise TypeError(
            f"{optimizer} takes sharded (DTensor) parameters only if torch.distributed.fsdp.fully_shard has sharded "
            "the whole model, over one mesh, and nothing else has: its factors are of whole layers"
        )
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
    return inner, (model.process_group,) if isinstance(model, DistributedDataParallel) else groups
