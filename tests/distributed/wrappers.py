"""What people wrap around models and optimizers: it gives the result of a single process, or says why it cannot."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist
from tests.distributed.models import OPTIMIZERS, batch, distance, fsdp, hybrid, model, train
from tests.distributed.processes import CHECKS, check
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from fisheropt import AdaFisher, FAdafactor, FAdam, step_in_backward

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch warns of its own code when it is imported
    from torch.distributed.optim import ZeroRedundancyOptimizer, _apply_optimizer_in_backward

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}
PLAIN = partial(FAdam, **OPTIONS)


def _raises(kind: type[Exception], words: str, function) -> float:
    try:
        function()
    except kind as error:
        return 0.0 if words in str(error) else 1.0
    return 1.0


def _reference(make):
    net = model()
    train(net, make(net.parameters()), range(4))
    return net


# -- ZeroRedundancyOptimizer ------------------------------------------------------------------------------------------


def _zero_redundancy(optimizer_class, **options) -> float:
    """Each process steps some tensors, which are whole, and sends them to the others. Resumed after two steps."""
    net = DistributedDataParallel(model())
    first = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=optimizer_class, **OPTIONS, **options)
    train(net, first, range(2))
    first.consolidate_state_dict(to=0)
    saved = [first.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    second = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=optimizer_class, **OPTIONS, **options)
    second.load_state_dict(saved[0])
    train(net, second, range(2, 4))
    options.pop("parameters_as_bucket_view", None)
    return distance(net.module, _reference(partial(optimizer_class, **OPTIONS, **options)))


CHECKS["zero_redundancy_fadam"] = lambda _: _zero_redundancy(FAdam), (2, 4)
CHECKS["zero_redundancy_fadafactor"] = lambda _: _zero_redundancy(FAdafactor, min_dim_size_to_factor=4), (2, 4)
CHECKS["zero_redundancy_bucket_views"] = lambda _: _zero_redundancy(FAdam, parameters_as_bucket_view=True), (2,)


@check(2)
def zero_redundancy_overlapped_with_ddp_is_refused(folder) -> float:
    """By torch, for any optimizer that it has not compiled itself."""
    return _raises(
        ValueError,
        "functional optimizer",
        lambda: ZeroRedundancyOptimizer(model().parameters(), optimizer_class=FAdam, overlap_with_ddp=True, **OPTIONS),
    )


# -- optimizers inside backward ---------------------------------------------------------------------------------------


def _batch_by_batch(net) -> None:
    for step in range(4):
        net(batch(step)).square().mean().backward()


@check()
def step_in_backward_of_fsdp2(folder) -> float:
    net = model()
    fsdp(net)
    step_in_backward(net, OPTIMIZERS["fadafactor"])
    _batch_by_batch(net)
    assert all(p.grad is None for p in net.parameters())
    return distance(net, _reference(OPTIMIZERS["fadafactor"]))


@check(2)
def step_in_backward_of_a_model_in_ddp_is_refused(folder) -> float:
    return _raises(TypeError, "fully_shard", lambda: step_in_backward(DistributedDataParallel(model()), FAdam))


@check(2)
def step_in_backward_of_a_model_that_is_wrapped_in_ddp_later_is_refused(folder) -> float:
    net = model()
    handle = step_in_backward(net, FAdam)
    wrapped = DistributedDataParallel(net)
    refused = _raises(RuntimeError, "fully_shard", lambda: wrapped(batch(0)))
    handle.remove()
    wrapped(batch(0))
    return refused


@check()
def torchs_optimizer_in_backward(folder) -> float:
    net = model()
    _apply_optimizer_in_backward(FAdam, net.parameters(), OPTIONS)
    _batch_by_batch(net)
    return distance(net, _reference(PLAIN))


@check()
def torchs_optimizer_in_backward_under_ddp(folder) -> float:
    net = model()
    _apply_optimizer_in_backward(FAdam, net.parameters(), OPTIONS)
    # It waits for a stream of the accelerator, also where there is none
    stream = SimpleNamespace(wait_stream=lambda other: None)
    with mock.patch.object(torch.accelerator, "current_stream", return_value=stream):
        _batch_by_batch(DistributedDataParallel(net))
    return distance(net, _reference(PLAIN))


# -- GradScaler -------------------------------------------------------------------------------------------------------


def _overflow_on_one(make, shard) -> float:
    """One number of one shard overflows. Every process leaves that step out: a step some take is waited in for ever."""
    net, reference = model(), model()
    shard(net)
    optimizer, alone = make(net), make(reference)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(4):
        scaler.scale(net(batch(step)).square().mean()).backward()
        reference(batch(step)).square().mean().backward()
        if step == 1:
            if net[0].weight.device_mesh.get_coordinate()[-1] == 0:  # and on its replicas, which have its gradients
                net[0].weight.grad.to_local()[0, 0] = float("inf")
        else:
            alone.step()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        alone.zero_grad()
    assert scaler.get_scale() == 128.0
    return distance(net, reference)


CHECKS["fsdp2_grad_scaler_fadam"] = lambda _: _overflow_on_one(lambda net: PLAIN(net.parameters()), fsdp), (2, 4)
CHECKS["hsdp_grad_scaler_fadam"] = lambda _: _overflow_on_one(lambda net: PLAIN(net.parameters()), hybrid), (4,)
CHECKS["fsdp2_grad_scaler_adafisher"] = lambda _: _overflow_on_one(partial(AdaFisher, lr=1e-4), fsdp), (2, 4)


# -- FSDP1 ------------------------------------------------------------------------------------------------------------


def _fsdp1(use_orig_params: bool) -> float:
    net = FullyShardedDataParallel(model(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    return _raises(TypeError, "fully_shard", lambda: FAdam(net.parameters()))


CHECKS["flat_parameters_of_fsdp1_are_refused"] = lambda _: _fsdp1(False), (2,)
CHECKS["original_parameters_of_fsdp1_are_refused"] = lambda _: _fsdp1(True), (2,)
