"""What each rank runs: named checks that shard a model in some way and compare its training with a single process.

A check returns a number that has to be small: the largest difference to the single process, relative to the size of
the update it is about. Every rank computes the single-process result for itself, from the same seeds.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from fisheropt import FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam

CHECKS: dict[str, Callable[[], float]] = {}

# rules whose sharded and whole forms differ most: statistics of vectors, of matrices, and of an L2 norm
OPTIMIZERS = {
    "fadam": lambda params: FAdam(params, lr=1e-2, weight_decay=0.1),
    "fadafactor": lambda params: FAdafactor(params, lr=1e-2, weight_decay=0.1, min_dim_size_to_factor=4),
    "adam": lambda params: Adam(params, lr=1e-2, weight_decay=0.1),
    "adafactor": lambda params: Adafactor(params, lr=1e-2, weight_decay=0.001, min_dim_size_to_factor=4),
    "naturaladam": lambda params: NaturalAdam(params, lr=1e-1, weight_decay=0.1),
}


def check(function: Callable[[], float]) -> Callable[[], float]:
    CHECKS[function.__name__] = function
    return function


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
    net, reference = model(), model()
    shard(net)
    train(net, make(net.parameters()), range(steps), skip)
    train(reference, make(reference.parameters()), range(steps), skip)
    return distance(net, reference)


def world(*shape: int, names: tuple[str, ...] = ("data",)):
    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def fsdp(net: nn.Module) -> None:
    mesh = world()
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)


def tensor_parallel(mesh) -> Callable[[nn.Module], None]:
    """Split by columns, then by rows; the last two layers stay whole, so that a group mixes DTensors and tensors."""
    return lambda net: parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


for _name, _make in OPTIMIZERS.items():
    CHECKS[f"fsdp2_{_name}"] = lambda make=_make: compared(fsdp, make)
    CHECKS[f"tensor_parallel_{_name}"] = lambda make=_make: compared(tensor_parallel(world(names=("model",))), make)


@check
def fsdp2_missing_gradients() -> float:
    return compared(fsdp, OPTIMIZERS["fadam"], skip=True)


@check
def fsdp2_gradient_clipping() -> float:
    net, reference = model(), model()
    fsdp(net)
    for m in (net, reference):
        optimizer = OPTIMIZERS["fadafactor"](m.parameters())
        for step in range(4):
            optimizer.zero_grad()
            m(batch(step)).square().mean().backward()
            nn.utils.clip_grad_norm_(m.parameters(), 0.05)
            optimizer.step()
    return distance(net, reference)


@check
def fsdp2_data_parallel_batches() -> float:
    """Every rank its own example: the gradients are averaged by FSDP2, the statistics are of the whole tensors."""
    net, reference = model(), model()
    fsdp(net)
    size = dist.get_world_size()
    a, b = OPTIMIZERS["fadam"](net.parameters()), OPTIMIZERS["fadam"](reference.parameters())
    for step in range(4):
        a.zero_grad()
        net(batch(step, dist.get_rank())).square().mean().backward()
        a.step()
        b.zero_grad()
        reference(batch(step)[:size]).square().mean().backward()
        b.step()
    return distance(net, reference)


@check
def fsdp2_bfloat16_compute() -> float:
    """Full-precision shards, bfloat16 compute: the reference takes the very gradients, gathered."""
    net, reference = model(), model()
    fully_shard(net, mesh=world(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    a, b = OPTIMIZERS["fadam"](net.parameters()), OPTIMIZERS["fadam"](reference.parameters())
    for step in range(4):
        a.zero_grad()
        net(batch(step)).square().mean().backward()
        for p, q in zip(net.parameters(), reference.parameters(), strict=True):
            q.grad = whole(p.grad).to(q.dtype).clone()
        a.step()
        b.step()
    return distance(net, reference)


@check
def hsdp() -> float:
    if dist.get_world_size() < 4:
        return 0.0
    mesh = world(2, 2, names=("replicate", "shard"))
    return compared(lambda net: fully_shard(net, mesh=mesh), OPTIMIZERS["fadafactor"])


@check
def fsdp2_of_tensor_parallel() -> float:
    if dist.get_world_size() < 4:
        return 0.0
    mesh = world(2, 2, names=("data", "model"))

    def both(net: nn.Module) -> None:
        tensor_parallel(mesh["model"])(net)
        for part in (net[0], net[2]):
            fully_shard(part, mesh=mesh["data"])

    return compared(both, OPTIMIZERS["fadafactor"])


@check
def ddp() -> float:
    net = DistributedDataParallel(model())
    reference = model()
    train(net, OPTIMIZERS["fadam"](net.parameters()), range(4))
    train(reference, OPTIMIZERS["fadam"](reference.parameters()), range(4))
    return distance(net.module, reference)


@check
def partial_gradient_of_a_replicated_parameter() -> float:
    mesh = world()
    torch.manual_seed(0)
    start, g = torch.randn(6, 4), torch.randn(6, 4)
    p = nn.Parameter(distribute_tensor(start.clone(), mesh, [Replicate()]))
    q = nn.Parameter(start.clone())
    p.grad = DTensor.from_local(g / dist.get_world_size(), mesh, [Partial()])
    q.grad = g.clone()
    for x in (p, q):
        OPTIMIZERS["fadam"]([x]).step()
    return (whole(p.detach()) - q).abs().max().item() / (q - start).abs().max().item()


@check
def eight_bit_state_of_a_shard_stays_in_full_precision() -> float:
    """Storage is chosen by the whole tensor: each of four shards is large enough for blocks, and has none."""
    mesh = world()
    start = torch.randn(128, 128, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    p = nn.Parameter(distribute_tensor(start.clone(), mesh, [Shard(0)]))
    q = nn.Parameter(start.clone())
    p.grad = distribute_tensor(start.cos(), mesh, [Shard(0)])
    q.grad = start.cos()
    FAdam([p], state_dtype="int8").step()
    FAdam([q], backend="eager").step()
    return 0.0 if (whole(p.detach()) - q).abs().max() <= 1e-6 * (q - start).abs().max() else 1.0


def _communications(make: Callable, net: nn.Module) -> int:
    optimizer = make(net.parameters())
    net(batch(0)).square().mean().backward()
    with CommDebugMode() as communications:
        optimizer.step()
    return communications.get_total_counts()


@check
def fadam_meets_twice_per_step() -> float:
    net = model()
    fsdp(net)
    return abs(_communications(OPTIMIZERS["fadam"], net) - 2)


@check
def an_unsharded_model_never_meets() -> float:
    return _communications(OPTIMIZERS["fadam"], model())


def _reloaded(into: Callable[[nn.Module], None]) -> float:
    """FSDP2 for two steps, its full state dict into a model sharded by ``into``, two more steps there."""
    make = OPTIMIZERS["fadafactor"]
    net, reference = model(), model()
    fsdp(net)
    optimizer = make(net.parameters())
    train(net, optimizer, range(2))
    weights = {name: whole(p.detach()).clone() for name, p in net.named_parameters()}
    options = StateDictOptions(full_state_dict=True)
    saved = io.BytesIO()
    torch.save(get_optimizer_state_dict(net, optimizer, options=options), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)

    second = model()
    second.load_state_dict(weights)
    into(second)
    resumed = make(second.parameters())
    if any(isinstance(p, DTensor) for p in second.parameters()):
        # every rank has the full state: rank 0's is broadcast as it would be from a file
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(second, resumed, copy.deepcopy(state), options=options)
    train(second, resumed, range(2, 4))

    train(reference, make(reference.parameters()), range(4))
    return distance(second, reference)


@check
def full_state_dict_into_a_plain_optimizer() -> float:
    return _reloaded(lambda net: None)


@check
def full_state_dict_into_fsdp2() -> float:
    return _reloaded(fsdp)


@check
def sharded_state_is_dtensor_where_the_parameter_is() -> float:
    net = model()
    fsdp(net)
    optimizer = OPTIMIZERS["fadafactor"](net.parameters())
    train(net, optimizer, range(1))
    weight = net[0].weight
    state = optimizer.state[weight]
    placements = {name: x.placements for name, x in state.items() if isinstance(x, DTensor)}
    return 0.0 if placements == {"R": (Shard(0),), "C": (Replicate(),), "m": (Shard(0),)} else 1.0


def main(rank: int, size: int, address: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that what differs is the optimizer, not the order of a layer's sums
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=size)
    for name, run in CHECKS.items():
        result = torch.tensor(run(), dtype=torch.float64)
        dist.all_reduce(result, op=dist.ReduceOp.MAX)
        if rank == 0:
            print(f"{name} {result.item()!r}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
