"""AdaFisher on sharded models: factors of whole layers, from the data of all processes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import torch
import torch.distributed as dist
from tests.distributed.models import both, hybrid, tensor_parallel, whole, world
from tests.distributed.processes import CHECKS, check
from torch import nn
from torch.distributed.fsdp import fully_shard

from fisheropt import AdaFisher, AdaFisherW

OPTIONS = {"lr": 1e-4, "update_every": 2}


class Net(nn.Module):
    """A table that is also the output layer, a convolution with groups, norms, a bare parameter, layers with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(6)
        self.body = nn.Linear(6, 6)
        self.bare = nn.Parameter(torch.linspace(1, 2, 5).view(5, 1))
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        x = self.conv(x.movedim(-1, -2)).movedim(-1, -2) * self.bare
        return self.head(self.body(self.norm(x)).tanh())


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def tokens(step: int) -> torch.Tensor:
    return torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(step))


def share(x: torch.Tensor) -> torch.Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def train(model: nn.Module, optimizer, steps: range, data: Callable[[int], torch.Tensor]) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(data(step)).square().mean().backward()
        optimizer.step()


def by_fsdp(model: nn.Module) -> None:
    mesh = world()
    for layer in (model.conv, model.body):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def by_two_replicas(model: nn.Module) -> None:
    fully_shard(model, mesh=world(2, 2, names=("replicate", "shard")))


def _apart(model: nn.Module, reference: nn.Module) -> float:
    starts = net().parameters()
    return max(
        ((whole(p.detach()) - q).abs().max() / (q - start).abs().max()).item()
        for p, q, start in zip(model.parameters(), reference.parameters(), starts, strict=True)
    )


def _compared(shard: Callable, optimizer_class=AdaFisher, **options) -> float:
    """Every process its share of the data, against one process with all of it; saved and loaded in between."""
    model, reference = net(), net()
    shard(model)
    first = optimizer_class(model, **OPTIONS, **options)
    train(model, first, range(3), lambda step: share(tokens(step)))
    summary = first.curvature_summary()
    state = first.state_dict()
    first.close()
    second = optimizer_class(model, **OPTIONS, **options)
    second.load_state_dict(state)
    train(model, second, range(3, 5), lambda step: share(tokens(step)))

    alone = optimizer_class(reference, **OPTIONS, **options)
    train(reference, alone, range(3), tokens)
    expected = alone.curvature_summary()
    train(reference, alone, range(3, 5), tokens)
    assert summary.keys() == expected.keys()
    numbers = [(x, y) for name in summary for x, y in zip(summary[name][1:], expected[name][1:], strict=True)]
    assert all(summary[name].kind == expected[name].kind for name in summary)
    return max(_apart(model, reference), *(abs(x - y) for x, y in numbers))


CHECKS["adafisher_fsdp2"] = lambda _: _compared(by_fsdp), (2, 4)
CHECKS["adafisherw_fsdp2"] = lambda _: _compared(by_fsdp, AdaFisherW, weight_decay=0.1), (2, 4)
CHECKS["adafisher_fsdp2_minmax_before"] = (
    lambda _: _compared(by_fsdp, normalize="before", gammas=(0.08, 0.992)),
    (2, 4),
)


@check()
def adafisher_fsdp2_gradient_accumulation(folder) -> float:
    """Two micro-batches on each process, whose gradients are averaged over the processes after the second."""
    model, reference = net(), net()
    by_fsdp(model)
    optimizer, alone = AdaFisher(model, **OPTIONS), AdaFisher(reference, **OPTIONS)
    for step in range(3):
        parts = torch.randint(7, (8, 5), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        for i, part in enumerate(share(parts).chunk(2)):
            model.set_requires_gradient_sync(i == 1)
            (model(part).square().mean() / 2).backward()
        optimizer.step()
        train(reference, alone, range(1), lambda _, parts=parts: parts)
    return _apart(model, reference)


CHECKS["adafisher_hsdp"] = lambda _: _compared(by_two_replicas), (4,)


def _in_the_kernel(**options) -> float:
    """float32, which the kernel for the CPU takes, also where shards are empty. What differs is the order of sums."""
    model, reference = net().float(), net().float()
    by_fsdp(model)
    optimizers = [AdaFisher(m, **OPTIONS, **options) for m in (model, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(model, optimizers[0], range(4), lambda step: share(tokens(step)))
        train(reference, optimizers[1], range(4), tokens)
    assert optimizers[0].backends() == optimizers[1].backends()
    apart = _apart(model, reference)
    return 0.0 if apart <= 1e-3 else apart


CHECKS["adafisher_fsdp2_in_the_kernel"] = lambda _: _in_the_kernel(), (2, 4)
CHECKS["adafisher_fsdp2_bfloat16_state"] = lambda _: _in_the_kernel(state_dtype=torch.bfloat16, seed=3), (2, 4)


@check()
def adafisher_meets_twice_where_factors_are_due(folder) -> float:
    """For the factors of all layers, and for the extremes of all parameters without one; not at all between."""
    model = net()
    by_fsdp(model)
    optimizer = AdaFisher(model, **OPTIONS)
    calls: Counter = Counter()
    all_reduce = dist.all_reduce

    def counted(*args, **named):
        calls[step] += 1
        return all_reduce(*args, **named)

    for step in range(3):
        optimizer.zero_grad()
        model(share(tokens(step))).square().mean().backward()
        dist.all_reduce = counted
        try:
            optimizer.step()
        finally:
            dist.all_reduce = all_reduce
    return 0.0 if calls == {0: 2, 2: 2} else 1.0


@check(4)
def adafisher_of_tensor_parallel_is_refused(folder) -> float:
    from tests.distributed.models import model

    refused = 0
    for shard in (tensor_parallel(world(names=("model",))), both):
        sharded = model()
        shard(sharded)
        try:
            AdaFisher(sharded)
        except TypeError as error:
            refused += "fully_shard" in str(error)
    sharded = model()
    hybrid(sharded)
    AdaFisher(sharded).close()
    return 2.0 - refused
