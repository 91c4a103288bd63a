"""State in few bits: chosen by the whole tensor, with the noise of the whole tensor, whatever the sharding."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from tests.distributed.models import both, model, whole, world
from tests.distributed.processes import CHECKS, check
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from fisheropt import FAdafactor, FAdam
from fisheropt._dtensor import element_numbers

FEW_BITS = {
    "bfloat16_state": (torch.float32, {"state_dtype": torch.bfloat16}),
    "8_bit_state": (torch.float32, {"state_dtype": "int8"}),
    "bfloat16_weights": (torch.bfloat16, {"stochastic_rounding": True, "state_dtype": "int8"}),
}
PLACES = {
    "evenly": ((64, 128), 0),
    "unevenly": ((37, 128), 0),
    "with_empty_shards": ((3, 2048), 0),
    "by_columns": ((24, 512), 1),
    "in_a_batch_of_matrices": ((2, 30, 256), 1),
}


def _same_bits(shape, dim, dtype, options, optimizer_class=FAdam) -> float:
    """Three steps with given gradients: the share of numbers, in p and in its state, that are not those of one process.

    A sum in another order may round another way: float32 to its last digit, and a number in a million to another code.
    """
    mesh = world()
    start, *gradients = (x.to(dtype) for x in torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)))
    p, q = nn.Parameter(distribute_tensor(start.clone(), mesh, [Shard(dim)])), nn.Parameter(start.clone())
    a, b = (optimizer_class([x], backend="eager", **options) for x in (p, q))
    for g in gradients:
        p.grad, q.grad = distribute_tensor(g.clone(), mesh, [Shard(dim)]), g.clone()
        a.step()
        b.step()
    pairs = {name: (whole(x), b.state[q][name]) for name, x in a.state[p].items()} | {"p": (whole(p.detach()), q)}
    assert pairs.keys() == b.state[q].keys() | {"p"}
    apart = max((~torch.isclose(x, y, rtol=1e-6, atol=0)).double().mean().item() for x, y in pairs.values())
    return 0.0 if apart <= 1e-3 else apart


for _few, (_dtype, _options) in FEW_BITS.items():
    for _how, (_shape, _dim) in PLACES.items():
        CHECKS[f"{_few}_sharded_{_how}"] = (
            lambda _, shape=_shape, dim=_dim, dtype=_dtype, options=_options: _same_bits(shape, dim, dtype, options),
            (2, 4),
        )
CHECKS["8_bit_momentum_of_fadafactor"] = (
    lambda _: _same_bits((160, 256), 0, torch.float32, {"state_dtype": "int8"}, FAdafactor),
    (2, 4),
)


@check()
def eight_bits_are_chosen_by_the_whole_tensor(folder) -> float:
    """64 x 64 has 4096 numbers, each shard fewer; a row that is no whole number of blocks keeps full precision."""
    for shape, expected in (((32, 128), torch.uint8), ((70, 65), torch.float32), ((5000,), torch.float32)):
        p = nn.Parameter(distribute_tensor(torch.ones(shape, dtype=torch.float32), world(), [Shard(0)]))
        p.grad = torch.ones_like(p)
        optimizer = FAdam([p], state_dtype="int8")
        optimizer.step()
        if optimizer.state[p]["f"].dtype != expected:
            return 1.0
    return 0.0


@check(4)
def shards_that_cut_blocks_are_refused(folder) -> float:
    p = nn.Parameter(distribute_tensor(torch.ones(8, 768, dtype=torch.float32), world(), [Shard(1)]))
    try:
        FAdam([p], state_dtype="int8")
    except ValueError as error:
        return 0.0 if "state_dtype=torch.bfloat16" in str(error) else 1.0
    return 1.0


def _numbered(p: DTensor) -> float:
    """The numbers of all shards together count the elements of the whole tensor."""
    numbers = DTensor.from_local(
        element_numbers(p), p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )
    return 0.0 if torch.equal(numbers.full_tensor(), torch.arange(math.prod(p.shape)).view(p.shape)) else 1.0


@check()
def elements_are_numbered_as_in_the_whole_tensor(folder) -> float:
    shapes = ((7, 5), 0), ((7, 5), 1), ((1, 3), 0), ((2, 3, 5), 1)
    return max(_numbered(distribute_tensor(torch.ones(shape), world(), [Shard(dim)])) for shape, dim in shapes)


@check(4)
def elements_on_a_mesh_are_numbered_as_in_the_whole_tensor(folder) -> float:
    mesh = world(2, 2, names=("a", "b"))
    worst = 0.0
    for placements in ([Shard(0), Shard(0)], [Shard(0), Shard(1)], [Shard(1), Shard(0)]):
        worst = max(worst, _numbered(distribute_tensor(torch.ones(7, 5), mesh, placements)))
    net = model()
    both(net)  # strided: FSDP2 splits what tensor parallel has split
    assert any(hasattr(placement, "split_factor") for placement in net[0].weight.placements)
    assert dist.get_world_size() == 4
    return max(worst, *(_numbered(p) for p in net.parameters() if isinstance(p, DTensor)))
