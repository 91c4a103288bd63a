"""fisher="microbatch" (Equation 20): squares of micro-batch gradients, by backward passes, against the oracle."""

import copy
from pathlib import Path

import pytest
import torch
from tests.cases import INFO, gradients, parameter, relative_error, same_bits, snapshot
from torch import distributed, multiprocessing, nn
from torch.distributed.tensor import distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from fisheropt import FAdafactor, FAdam, step_in_backward

K, STEPS = 3, 4
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "rho": 0.7, "betas": (0.8, 0.9)}


def accumulate(p, parts, scaled=lambda loss: loss):
    """Backward passes whose losses are divided by their number."""
    for part in parts:
        scaled((p * part).sum() / len(parts)).backward()


@pytest.mark.parametrize("cls", [FAdam, FAdafactor])
@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 4, 3)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_line_7_takes_the_mean_of_the_squares(cls, shape, scale):
    info = INFO[cls.__name__]
    options = {**OPTIONS, **info.small}
    p = parameter(shape, dtype=torch.float64)
    grads = gradients((K, *shape), scale=scale, steps=STEPS, dtype=torch.float64)
    value, state = p.detach().numpy().copy(), None
    optimizer = info.make([p], fisher="microbatch", **options)
    for parts in grads:
        accumulate(p, parts)
        optimizer.step()
        optimizer.zero_grad()
        value, state = info.oracle(value, parts.mean(0).numpy(), state, parts=parts.numpy(), **options)
    assert relative_error(p, value) <= 1e-12
    for slot in info.slots(shape, **options):
        assert relative_error(optimizer.state[p][slot], state[slot]) <= 1e-12, slot


@pytest.mark.parametrize("cls", [FAdam, FAdafactor])
def test_one_micro_batch_is_a_batch(cls):
    """Through backward, by a gradient set by hand, inside backward, and in half precision: the same bits."""
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for way in ("batch", "backward", "by hand", "in backward"):
            p = parameter((5, 3), dtype=dtype)
            options = {**OPTIONS, **INFO[cls.__name__].small, "backend": "eager"}
            fisher = "batch" if way == "batch" else "microbatch"
            holder = nn.ParameterList([p])
            if way == "in backward":
                handle = step_in_backward(holder, lambda ps, fisher=fisher, o=options: cls(ps, fisher=fisher, **o))
                optimizer = handle.optimizer
            else:
                optimizer = cls(holder.parameters(), fisher=fisher, **options)
            p = holder[0]
            for g in gradients((5, 3), scale=1.0, steps=STEPS, dtype=dtype):
                optimizer.zero_grad()
                if way == "by hand":
                    p.grad = g.clone()
                else:
                    accumulate(p, [g])
                optimizer.step()
            found.append(snapshot(optimizer))
        assert all(same_bits(found[0], other) for other in found[1:])


def test_what_was_dropped_does_not_count():
    """A backward pass that no step followed: after zero_grad of the optimizer, of either kind, or of the model."""
    g = torch.tensor([1.0, 2.0])
    for drop in ("optimizer", "zeros", "model"):
        model = nn.ParameterList([torch.ones(2)])
        p = model[0]
        optimizer = FAdam([p], fisher="microbatch", backend="eager")
        accumulate(p, [100 * g])
        if drop == "model":
            model.zero_grad()
        else:
            optimizer.zero_grad(set_to_none=drop == "optimizer")
        accumulate(p, [g, g])
        optimizer.step()
        torch.testing.assert_close(optimizer.state[p]["f"], g.square())


def test_the_scale_of_a_loss_makes_no_difference():
    """Scales are powers of two, so that unscaling is exact; a step that overflows is skipped with its squares."""
    found = []
    for scaled in (False, True):
        p = parameter((5,))
        optimizer = FAdam([p], fisher="microbatch", backend="eager", **OPTIONS)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for i, parts in enumerate(gradients((K, 5), scale=1.0, steps=STEPS, dtype=torch.float32)):
            if scaled and i == 2:
                optimizer.zero_grad()
                accumulate(p, [torch.full((5,), float("inf"))], scaler.scale)
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            accumulate(p, parts, scaler.scale)
            scaler.step(optimizer)
            scaler.update()
        found.append(snapshot(optimizer))
    assert same_bits(*found)


def test_gradients_unscaled_before_the_step_need_the_scale():
    p = parameter((5,))
    optimizer = FAdam([p], fisher="microbatch", backend="eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    accumulate(p, [torch.ones(5)], scaler.scale)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"optimizer\.loss_scale = scaler\.get_scale"):
        scaler.step(optimizer)
    optimizer.loss_scale = scaler.get_scale
    scaler.step(optimizer)
    torch.testing.assert_close(optimizer.state[p]["f"], torch.ones(5))


def test_copies_and_checkpoints():
    """What arrived since the last step is no state; a copy has hooks of its own; either kind loads the other's."""
    p = parameter((5,))
    optimizer = FAdam([p], fisher="microbatch", backend="eager")
    accumulate(p, [torch.ones(5)])
    optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == {"step", "f", "m"}
    twin = copy.deepcopy(optimizer)
    q = twin.param_groups[0]["params"][0]
    for optimizer_, x in ((optimizer, p), (twin, q)):
        optimizer_.zero_grad()
        accumulate(x, [torch.ones(5), 3 * torch.ones(5)])
        optimizer_.step()
    assert same_bits(snapshot(optimizer), snapshot(twin))
    plain = FAdam([parameter((5,))], backend="eager")
    plain.load_state_dict(optimizer.state_dict())
    assert plain.param_groups[0]["fisher"] == "microbatch"
    assert not p._backward_hooks or len(p._backward_hooks) == 1
    del optimizer, optimizer_
    assert not p._backward_hooks


def test_the_option_is_checked_and_named_kernels_decline():
    with pytest.raises(ValueError, match="fisher must be 'batch' or 'microbatch', got 'half'"):
        FAdam([parameter((2,))], fisher="half")
    assert FAdam([parameter((2,))], fisher="microbatch").backends() == {"0.0": "eager"}


def ddp_run(rank, ranks, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 6)
        model.bias.zero_()
    wrapped = DistributedDataParallel(model)
    optimizer = FAdam(wrapped.parameters(), fisher="microbatch", backend="eager", **OPTIONS)
    for parts in torch.arange(2 * 4 * 3.0).sin().view(2, 4, 1, 3):
        optimizer.zero_grad()
        mine = parts.chunk(ranks)[rank]
        for i, x in enumerate(mine):
            wrapped.require_backward_grad_sync = i == len(mine) - 1
            (wrapped(x).square().sum() / len(mine)).backward()
        optimizer.step()
    message = ""
    if ranks > 1:
        mesh = init_device_mesh("cpu", (ranks,))
        try:
            FAdam([nn.Parameter(distribute_tensor(torch.ones(4), mesh))], fisher="microbatch")
        except TypeError as error:
            message = str(error)
    torch.save((snapshot(optimizer), message), Path(folder) / f"{rank} of {ranks}.pt")
    distributed.destroy_process_group()


def test_processes_are_more_micro_batches(tmp_path):
    """Two processes with two micro-batches each take the steps of one with four."""
    multiprocessing.spawn(ddp_run, (2, tmp_path), nprocs=2)
    (tmp_path / "meet").unlink(missing_ok=True)
    ddp_run(0, 1, tmp_path)
    alone, _ = torch.load(tmp_path / "0 of 1.pt")
    ranks = [torch.load(tmp_path / f"{rank} of 2.pt") for rank in range(2)]
    assert same_bits(ranks[0][0], ranks[1][0])
    for a, b in zip(alone, ranks[0][0], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)
    assert "does not take sharded (DTensor) parameters" in ranks[0][1]
