"""What the processes train: a small network, ways to shard it, and how far two trainings are apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fisheropt import FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam

# rules whose sharded and whole forms differ most: statistics of vectors, of matrices, and of an L2 norm
OPTIMIZERS = {
    "fadam": lambda params: FAdam(params, lr=1e-2, weight_decay=0.1),
    "fadafactor": lambda params: FAdafactor(params, lr=1e-2, weight_decay=0.1, min_dim_size_to_factor=4),
    "adam": lambda params: Adam(params, lr=1e-2, weight_decay=0.1),
    "adafactor": lambda params: Adafactor(params, lr=1e-2, weight_decay=0.001, min_dim_size_to_factor=4),
    "naturaladam": lambda params: NaturalAdam(params, lr=1e-1, weight_decay=0.1),
}


def model() -> nn.Module:
    """Matrices that two and four ranks split evenly (16 x 8), unevenly (7 x 5) and with ranks left empty (1 x 7)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 7), nn.Linear(7, 1))


def batch(step: int, rank: int | None = None) -> torch.Tensor:
    """Four examples; with a rank, the single one that is this rank's in a global batch of world-size examples."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
    return x if rank is None else x[rank % 4 : rank % 4 + 1]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, skip: bool = False) -> None:
    """Steps on the whole batch. With ``skip`` one tensor has no gradient in every second step."""
    for step in steps:
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        if skip and step % 2:
            next(iter(net.parameters())).grad = None
        optimizer.step()


def whole(x: torch.Tensor) -> torch.Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def distance(net: nn.Module, reference: nn.Module) -> float:
    """The largest difference of any tensor, relative to the largest move of that tensor from its start."""
    worst = 0.0
    for p, q, start in zip(net.parameters(), reference.parameters(), model().parameters(), strict=True):
        moved = (q - start).abs().max().item()
        worst = max(worst, (whole(p.detach()) - q).abs().max().item() / moved)
    return worst


def compared(shard: Callable[[nn.Module], None], make: Callable, steps: int = 4, skip: bool = False) -> float:
    """How far the sharded model is from one that a single process trains."""
    net, reference = model(), model()
    shard(net)
    train(net, make(net.parameters()), range(steps), skip)
    train(reference, make(reference.parameters()), range(steps), skip)
    return distance(net, reference)


def world(*shape: int, names: tuple[str, ...] = ("data",)):
    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def fsdp(net: nn.Module, mesh=None, **policies) -> None:
    mesh = world() if mesh is None else mesh
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **policies)
    fully_shard(net, mesh=mesh, **policies)


def tensor_parallel(mesh) -> Callable[[nn.Module], None]:
    """Split by columns, then by rows; the last two layers stay whole, so that a group mixes DTensors and tensors."""
    return lambda net: parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def hybrid(net: nn.Module) -> None:
    """Two replicas of two shards."""
    fsdp(net, world(2, 2, names=("replicate", "shard")))


def both(net: nn.Module) -> None:
    """FSDP2 of tensor parallel, two by two; the last two layers stay whole."""
    mesh = world(2, 2, names=("data", "model"))
    tensor_parallel(mesh["model"])(net)
    for part in (net[0], net[2]):
        fully_shard(part, mesh=mesh["data"])
