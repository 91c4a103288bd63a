"""Saved on so many processes, loaded on so many others, and the next steps are those of a run without interruption."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from tests.distributed.models import (
    OPTIMIZERS,
    both,
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
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor

from fisheropt import FAdam

Shard = Callable[[nn.Module], None]

MAKE = OPTIMIZERS["fadafactor"]  # has every kind of slot: rows, columns, elements


def one(net: nn.Module) -> None:
    """Not sharded."""


def by_columns_and_rows(net: nn.Module) -> None:
    tensor_parallel(world(names=("model",)))(net)


# -- torch.distributed.checkpoint -------------------------------------------------------------------------------------


def _save(path: Path, shard: Shard) -> None:
    """Two steps, then a checkpoint. A model that is not sharded is saved by one process that knows of no other."""
    net = model()
    shard(net)
    optimizer = MAKE(net.parameters())
    train(net, optimizer, range(2))
    weights, state = get_state_dict(net, optimizer)
    alone = shard is one
    if not alone or dist.get_rank() == 0:
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path, no_dist=alone)
    dist.barrier()


def _resume(path: Path, shard: Shard) -> float:
    """Loads into a model and an optimizer that are new, takes two more steps, and compares with four in one go."""
    net, reference = model(), model()
    for p in net.parameters():
        nn.init.zeros_(p)
    shard(net)
    optimizer = MAKE(net.parameters())
    weights, state = get_state_dict(net, optimizer)
    content = {"model": weights, "optimizer": state}
    dcp.load(content, checkpoint_id=path, no_dist=shard is one)
    set_state_dict(net, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])
    train(net, optimizer, range(2, 4))
    train(reference, MAKE(reference.parameters()), range(4))
    return distance(net, reference)


@check(2)
def saved_by_one_and_by_two(folder) -> float:
    _save(folder / "1", one)
    _save(folder / "2", fsdp)
    return 0.0


@check(4)
def saved_by_two_times_two(folder) -> float:
    _save(folder / "2x2 hybrid", hybrid)
    _save(folder / "2x2 both", both)
    return 0.0


CHECKS["resumed_from_1_on_2"] = lambda folder: _resume(folder / "1", fsdp), (2,)
CHECKS["resumed_from_1_on_4"] = lambda folder: _resume(folder / "1", fsdp), (4,)
CHECKS["resumed_from_2_on_1"] = lambda folder: _resume(folder / "2", one), (4,)  # each of the four by itself
CHECKS["resumed_from_2_on_4"] = lambda folder: _resume(folder / "2", fsdp), (4,)
CHECKS["resumed_from_2_on_4_by_tensor_parallel"] = lambda folder: _resume(folder / "2", by_columns_and_rows), (4,)
for _grid in ("2x2 hybrid", "2x2 both"):
    _name = f"resumed_from_{_grid.replace(' ', '_')}"
    CHECKS[f"{_name}_on_4"] = lambda folder, grid=_grid: _resume(folder / grid, fsdp), (4,)
    CHECKS[f"{_name}_on_1"] = lambda folder, grid=_grid: _resume(folder / grid, one), (4,)


@check(2)
def resumed_on_as_many_processes_it_is_the_same_bit_for_bit(folder) -> float:
    path = folder / "same"
    nets = [model(), model()]
    optimizers = []
    for net in nets:
        fsdp(net)
        optimizers.append(MAKE(net.parameters()))
    train(nets[0], optimizers[0], range(2))
    weights, state = get_state_dict(nets[0], optimizers[0])
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)
    weights, state = get_state_dict(nets[1], optimizers[1])
    content = {"model": weights, "optimizer": state}
    dcp.load(content, checkpoint_id=path)
    set_state_dict(nets[1], optimizers[1], model_state_dict=content["model"], optim_state_dict=content["optimizer"])
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, range(2, 4))
    pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    return 0.0 if all(torch.equal(p.to_local(), q.to_local()) for p, q in pairs) else 1.0


# -- full state dicts -------------------------------------------------------------------------------------------------


def _reloaded(first: Shard, second: Shard) -> float:
    """Two steps, the full state dict through a file, two more steps where it is sharded in another way."""
    net, reference = model(), model()
    first(net)
    optimizer = MAKE(net.parameters())
    train(net, optimizer, range(2))
    options = StateDictOptions(full_state_dict=True)
    weights = copy.deepcopy(get_model_state_dict(net, options=options))
    saved = io.BytesIO()
    torch.save(get_optimizer_state_dict(net, optimizer, options=options), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)

    resumed = model()
    resumed.load_state_dict(weights)
    second(resumed)
    optimizer = MAKE(resumed.parameters())
    if any(isinstance(p, DTensor) for p in resumed.parameters()):
        # every rank has the full state: rank 0's is broadcast as it would be from a file
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(resumed, optimizer, state, options=options)
    train(resumed, optimizer, range(2, 4))
    train(reference, MAKE(reference.parameters()), range(4))
    return distance(resumed, reference)


CHECKS["full_state_dict_of_fsdp2_into_a_plain_optimizer"] = lambda _: _reloaded(fsdp, one), (2, 4)
CHECKS["full_state_dict_of_fsdp2_into_fsdp2"] = lambda _: _reloaded(fsdp, fsdp), (2, 4)
CHECKS["full_state_dict_of_one_into_fsdp2"] = lambda _: _reloaded(one, fsdp), (2, 4)
CHECKS["full_state_dict_of_fsdp2_of_tensor_parallel_into_a_plain_optimizer"] = lambda _: _reloaded(both, one), (4,)


# -- few bits ---------------------------------------------------------------------------------------------------------


def _large(shard: Shard, rows: int = 34) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, rows, dtype=torch.float32))
    shard(net)
    return net


def _stepped(net: nn.Module, state_dtype) -> FAdam:
    optimizer = FAdam(net.parameters(), state_dtype=state_dtype, backend="eager")  # or each process compiles a kernel
    for p in net.parameters():
        p.grad = torch.sin(p.detach() * 50)
    optimizer.step()
    return optimizer


def _content(optimizer: FAdam) -> list[torch.Tensor]:
    return [whole(x) for state in optimizer.state.values() for x in state.values()]


def _moved(state_dtype, path: Path, first: Shard, second: Shard, rows: int = 34) -> float:
    """The bits of low-precision state survive another sharding."""
    net = _large(first, rows)
    optimizer = _stepped(net, state_dtype)
    dcp.save({"optimizer": get_optimizer_state_dict(net, optimizer)}, checkpoint_id=path)
    net = _large(second, rows)
    resumed = FAdam(net.parameters(), state_dtype=state_dtype, backend="eager")
    content = {"optimizer": get_optimizer_state_dict(net, resumed)}
    dcp.load(content, checkpoint_id=path)
    set_optimizer_state_dict(net, resumed, content["optimizer"])
    pairs = zip(_content(optimizer), _content(resumed), strict=True)
    return 0.0 if all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs) else 1.0


for _few, _state_dtype in {"8_bit_state": "int8", "bfloat16_state": torch.bfloat16}.items():
    for _way, (_first, _second) in {
        "to_one_process": (fsdp, one),
        "from_one_process": (one, fsdp),
        "to_two_replicas_of_two": (fsdp, hybrid),
    }.items():
        CHECKS[f"{_few}_moves_{_way}"] = (
            lambda folder, d=_state_dtype, way=_way, first=_first, second=_second: _moved(
                d, folder / f"{d} {way} {dist.get_world_size()}", first, second
            ),
            (4,) if _second is hybrid else (2, 4),
        )
