"""How often the processes meet in a step, and with how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch.distributed as dist
from tests.distributed.models import OPTIMIZERS, batch, both, fsdp, hybrid, model, tensor_parallel, world
from tests.distributed.processes import check
from torch import nn
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from fisheropt import FAdafactor, FAdam


def _meetings(net: nn.Module, optimizer) -> Counter:
    """How often a step communicates, per number of processes that take part."""
    net(batch(0)).square().mean().backward()
    sizes: Counter = Counter()
    all_reduce = dist.all_reduce

    def counted(tensor, *args, group=None, **named):
        sizes[dist.get_world_size(group), tensor.numel()] += 1
        return all_reduce(tensor, *args, group=group, **named)

    dist.all_reduce = counted
    try:
        with CommDebugMode() as communications:
            optimizer.step()
    finally:
        dist.all_reduce = all_reduce
    assert communications.get_total_counts() == sizes.total(), "it communicates in other ways than all-reduces"
    return sizes


def _differ(net: nn.Module, make: Callable, expected: dict[tuple[int, int], int]) -> float:
    found = _meetings(net, make(net.parameters()))
    assert found == expected, f"expected {expected}, got {dict(found)}"
    return 0.0


def _in_two_groups(optimizer_class) -> Callable:
    """Matrices with decay, vectors without: the usual groups, in which the rules ask for different statistics."""

    def make(params):
        params = list(params)
        return optimizer_class(
            [
                {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
                {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
            ],
            **({} if optimizer_class is FAdam else {"min_dim_size_to_factor": 4}),
        )

    return make


@check()
def fadam_meets_twice_per_step(folder) -> float:
    net = model()
    fsdp(net)
    n = dist.get_world_size()
    # 8 tensors: rms(g) of each; then rms(gbar) of each and rms(gw) of the 4 matrices
    return _differ(net, _in_two_groups(FAdam), {(n, 8): 1, (n, 12): 1})


@check()
def fadafactor_meets_twice_where_the_rows_are_split(folder) -> float:
    """R is complete in each shard, so C, sum(R) and rms(g) can be asked for together."""
    net = model()
    fsdp(net)
    n = dist.get_world_size()
    # C and sum(R) of the 16 x 8, 5 x 16 and 7 x 5, the 1 x 7 being kept whole; rms(g) of all 8
    first = (8 + 16 + 5) + 3 + 8
    return _differ(net, _in_two_groups(FAdafactor), {(n, first): 1, (n, 12): 1})


@check()
def fadafactor_meets_three_times_where_columns_are_split(folder) -> float:
    """R has to be summed first, then sum(R) of the layer that is split by rows of its input, then the clips."""
    net = model()
    tensor_parallel(world(names=("model",)))(net)
    n = dist.get_world_size()
    found = _meetings(net, _in_two_groups(FAdafactor)(net.parameters()))
    return 0.0 if {size for size, _ in found} == {n} and found.total() <= 3 else 1.0


@check(4)
def a_mesh_dimension_that_replicates_is_not_asked(folder) -> float:
    net = model()
    hybrid(net)
    return _differ(net, _in_two_groups(FAdam), {(2, 8): 1, (2, 12): 1})


@check(4)
def each_dimension_of_a_mesh_meets_at_most_three_times(folder) -> float:
    net = model()
    both(net)
    found = _meetings(net, _in_two_groups(FAdafactor)(net.parameters()))
    return 0.0 if {size for size, _ in found} == {2} and found.total() <= 2 * 3 else 1.0


@check()
def what_is_not_sharded_never_meets(folder) -> float:
    for optimizer_class in (FAdam, FAdafactor):
        _differ(model(), _in_two_groups(optimizer_class), {})
    p = nn.Parameter(distribute_tensor(model()[0].weight.detach(), world(), [Replicate()]))
    p.grad = distribute_tensor(model()[0].weight.detach(), world(), [Replicate()])
    with CommDebugMode() as communications:
        OPTIMIZERS["fadafactor"]([p]).step()
    return float(communications.get_total_counts())
