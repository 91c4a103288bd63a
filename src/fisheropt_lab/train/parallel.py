"""The model on many processes: DDP or FSDP2, with or without bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from fisheropt_lab.train.plan import Parallel, Precision
from fisheropt_lab.train.world import World


def distribute(model: nn.Module, how: Parallel, precision: Precision, world: World) -> nn.Module:
    """The model on the world's device, every process holding all of it (ddp) or its shard (fsdp2).

    Weights stay in float32. With bfloat16, FSDP2 also sends them in bfloat16 and reduces gradients in float32.
    """
    if how == "fsdp2":
        mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("data",))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)  # autocast decides, as it does without sharding
        if precision == "bfloat16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for layers in model.modules():
            if isinstance(layers, nn.ModuleList):  # one message per layer, sent while the layer before is computed
                for layer in layers:
                    fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        return model
    model = model.to(world.device)
    if how == "ddp":
        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)
    return model


def precise(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Forward passes in this precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def gradients_stay_local(model: nn.Module, stay: bool) -> Iterator[None]:
    """Whether the backward passes inside leave the averaging over processes to a later one, as micro-batches do."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not stay)
        yield
    elif stay and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield
