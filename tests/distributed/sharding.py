"""Sharding does not change the result."""

from __future__ import annotations

import torch
import torch.distributed as dist
from tests.distributed.models import (
    OPTIMIZERS,
    batch,
    both,
    compared,
    distance,
    fsdp,
    hybrid,
    model,
    tensor_parallel,
    train,
    whole,
    world,
)
from tests.distributed.processes import CHECKS, check
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

for _name, _make in OPTIMIZERS.items():
    CHECKS[f"fsdp2_{_name}"] = lambda _, make=_make: compared(fsdp, make), (2, 4)
    CHECKS[f"tensor_parallel_{_name}"] = (
        lambda _, make=_make: compared(tensor_parallel(world(names=("model",))), make),
        (2, 4),
    )
for _name in ("fadam", "fadafactor"):
    CHECKS[f"hsdp_{_name}"] = lambda _, make=OPTIMIZERS[_name]: compared(hybrid, make), (4,)
    CHECKS[f"fsdp2_of_tensor_parallel_{_name}"] = lambda _, make=OPTIMIZERS[_name]: compared(both, make), (4,)


@check()
def ddp(folder) -> float:
    net = DistributedDataParallel(model())
    reference = model()
    train(net, OPTIMIZERS["fadam"](net.parameters()), range(4))
    train(reference, OPTIMIZERS["fadam"](reference.parameters()), range(4))
    return distance(net.module, reference)


@check()
def fsdp2_missing_gradients(folder) -> float:
    return compared(fsdp, OPTIMIZERS["fadam"], skip=True)


@check()
def fsdp2_gradient_clipping(folder) -> float:
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


@check()
def fsdp2_data_parallel_batches(folder) -> float:
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


@check()
def fsdp2_bfloat16_compute(folder) -> float:
    """Full-precision shards, bfloat16 compute: the reference takes the very gradients, gathered."""
    net, reference = model(), model()
    fsdp(net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    a, b = OPTIMIZERS["fadam"](net.parameters()), OPTIMIZERS["fadam"](reference.parameters())
    for step in range(4):
        a.zero_grad()
        net(batch(step)).square().mean().backward()
        for p, q in zip(net.parameters(), reference.parameters(), strict=True):
            q.grad = whole(p.grad).to(q.dtype).clone()
        a.step()
        b.step()
    return distance(net, reference)


@check()
def fsdp2_with_cpu_offload(folder) -> float:
    """The policy of FSDP2; on a machine with a GPU the shards would be elsewhere than the processes meet."""
    return compared(lambda net: fsdp(net, offload_policy=CPUOffloadPolicy(pin_memory=False)), OPTIMIZERS["fadafactor"])


@check()
def fsdp2_of_a_compiled_model(folder) -> float:
    def compiled(net: nn.Module) -> None:
        fsdp(net)
        net.compile(backend="aot_eager")

    return compared(compiled, OPTIMIZERS["fadam"])


@check()
def two_groups_and_steps_of_their_own(folder) -> float:
    """Groups that differ in what the rule does (decay, epsilon, momentum), one of them joined later."""

    def train_in_groups(net: nn.Module) -> nn.Module:
        params = list(net.parameters())
        factored = OPTIMIZERS["fadafactor"](
            [{"params": params[:4]}, {"params": params[4:6], "weight_decay": 0.0, "eps2": None, "betas": (0.0, 0.9)}]
        )
        train(net, factored, range(2))
        factored.add_param_group({"params": params[6:], "clip": None})
        train(net, factored, range(2, 4))
        return net

    net = model()
    fsdp(net)
    return distance(train_in_groups(net), train_in_groups(model()))


# -- parameters of a kind ---------------------------------------------------------------------------------------------


def _one_tensor(shape: tuple[int, ...], placement, make) -> float:
    """Three steps of one tensor placed like that, its gradients being given."""
    mesh = world()
    start, *gradients = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    p, q = nn.Parameter(distribute_tensor(start.clone(), mesh, [placement])), nn.Parameter(start.clone())
    a, b = make([p]), make([q])
    for g in gradients:
        p.grad, q.grad = distribute_tensor(g.clone(), mesh, [placement]), g.clone()
        a.step()
        b.step()
    return (whole(p.detach()) - q).abs().max().item() / (q - start).abs().max().item()


SHAPES = {
    "evenly_sharded": (8, 12),
    "unevenly_sharded_7x5": (7, 5),
    "one_row": (1, 12),  # all shards but one are empty
    "fewer_rows_than_processes": (3, 6),
    "a_vector": (5,),
    "a_batch_of_matrices": (2, 6, 8),
    "a_transposed_convolution": (4, 6, 1, 5),
}
for _case, _shape in SHAPES.items():
    for _name in ("fadam", "fadafactor"):
        for _dim in range(len(_shape)):
            CHECKS[f"{_case}_by_dimension_{_dim}_{_name}"] = (
                lambda _, shape=_shape, dim=_dim, make=OPTIMIZERS[_name]: _one_tensor(shape, Shard(dim), make),
                (2, 4),
            )
CHECKS["replicated"] = lambda _: _one_tensor((7, 5), Replicate(), OPTIMIZERS["fadafactor"]), (2, 4)


@check()
def a_scalar_beside_shards(folder) -> float:
    """A plain tensor of no dimension in the same group as DTensors."""
    net, reference = model(), model()
    fsdp(net)
    scalars = []
    for m in (net, reference):
        s = nn.Parameter(torch.tensor(2.0))
        optimizer = OPTIMIZERS["fadafactor"]([*m.parameters(), s])
        for step in range(3):
            optimizer.zero_grad()
            (m(batch(step)).square().mean() * s).backward()
            optimizer.step()
        scalars.append(s.detach())
    return max(distance(net, reference), (scalars[0] - scalars[1]).abs().item())


@check()
def partial_gradient_of_a_replicated_parameter(folder) -> float:
    return _partial_gradient(Replicate())


@check()
def partial_gradient_of_a_sharded_parameter(folder) -> float:
    return _partial_gradient(Shard(0))


def _partial_gradient(placement) -> float:
    """Every process has a summand of the gradient."""
    mesh = world()
    torch.manual_seed(0)
    start, g = torch.randn(6, 4), torch.randn(dist.get_world_size(), 6, 4)
    p = nn.Parameter(distribute_tensor(start.clone(), mesh, [placement]))
    q = nn.Parameter(start.clone())
    p.grad = DTensor.from_local(g[dist.get_rank()], mesh, [Partial()])
    q.grad = g.sum(dim=0)
    for x in (p, q):
        OPTIMIZERS["fadam"]([x]).step()
    return (whole(p.detach()) - q).abs().max().item() / (q - start).abs().max().item()


@check()
def partial_parameters_are_refused(folder) -> float:
    p = nn.Parameter(DTensor.from_local(torch.ones(2, 3), world(), [Partial()]))
    try:
        OPTIMIZERS["fadam"]([p])
    except TypeError as error:
        return 0.0 if "partial sums" in str(error) else 1.0
    return 1.0


@check()
def sharded_state_is_dtensor_where_the_parameter_is(folder) -> float:
    net = model()
    fsdp(net)
    optimizer = OPTIMIZERS["fadafactor"](net.parameters())
    train(net, optimizer, range(1))
    weight = net[0].weight
    state = optimizer.state[weight]
    placements = {name: x.placements for name, x in state.items() if isinstance(x, DTensor)}
    return 0.0 if placements == {"R": (Shard(0),), "C": (Replicate(),), "m": (Shard(0),)} else 1.0


@check()
def the_kernels_leave_shards_to_plain_operations_and_say_so(folder) -> float:
    p = nn.Parameter(distribute_tensor(torch.ones(4, 4, dtype=torch.float32), world(), [Shard(0)]))
    said = OPTIMIZERS["fadam"]([p]).backends()["0.0"]
    return 0.0 if said in ("eager", "eager (numba: sharded parameter)") else 1.0
