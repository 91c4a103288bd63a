"""step_in_backward: each tensor is stepped and its gradient freed inside backward, with the bits of ordinary steps."""

from functools import partial

import pytest
import torch
from tests.cases import each_in_backward, parameter, same_bits, snapshot

import fisheropt

STEPS = 4


def network():
    """Tied weights, a module that is called twice, and a parameter that is frozen: what hooks get wrong."""
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(7, 4),
            "twice": torch.nn.Linear(4, 4),
            "norm": torch.nn.LayerNorm(4),
            "head": torch.nn.Linear(4, 7),
        }
    )
    model["head"].weight = model["embed"].weight
    for i, p in enumerate(model.parameters()):
        p.data.copy_(parameter(tuple(p.shape), seed=i))
    model["twice"].bias.requires_grad_(False)
    return model


def loss_of(model, t):
    x = model["embed"](torch.tensor([t % 7, (3 * t) % 7, 5]))
    x = model["norm"](model["twice"](torch.tanh(model["twice"](x))))
    return torch.nn.functional.cross_entropy(model["head"](x), torch.tensor([1, 2, 3]))


def train_ordinarily(model, optimizer, steps=STEPS, start=0, scheduler=None):
    for t in range(start, start + steps):
        loss_of(model, t).backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def train_in_backward(model, steps=STEPS, start=0, scheduler=None):
    for t in range(start, start + steps):
        loss_of(model, t).backward()
        assert all(p.grad is None for p in model.parameters())
        if scheduler is not None:
            scheduler.step()


def factory_of(info, **options):
    return partial(info.make, **({"lr": 0.05} | info.small | options))


def ordinary(info, model):
    return factory_of(info)([p for p in model.parameters() if p.requires_grad])


@each_in_backward
def test_the_bits_are_those_of_ordinary_steps(info):
    plain, fused = network(), network()
    optimizer = ordinary(info, plain)
    handle = fisheropt.step_in_backward(fused, factory_of(info))
    train_ordinarily(plain, optimizer)
    train_in_backward(fused)
    assert same_bits(snapshot(optimizer), snapshot(handle.optimizer))


@each_in_backward
def test_a_scheduler_sets_the_rate_of_the_next_backward(info):
    plain, fused = network(), network()
    optimizer = ordinary(info, plain)
    handle = fisheropt.step_in_backward(fused, factory_of(info))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.5) for opt in (optimizer, handle.optimizer)]
    train_ordinarily(plain, optimizer, scheduler=schedulers[0])
    with pytest.warns(UserWarning, match="optimizer.step"):  # torch's scheduler looks for calls of step
        train_in_backward(fused, scheduler=schedulers[1])
    assert handle.optimizer.param_groups[0]["lr"] == 0.05 * 0.5**STEPS
    assert same_bits(snapshot(optimizer), snapshot(handle.optimizer))


@each_in_backward
def test_an_unchanged_training_loop_goes_on_working(info):
    """Its step finds no gradient left, and zero_grad nothing to drop."""
    plain, fused = network(), network()
    optimizer = ordinary(info, plain)
    handle = fisheropt.step_in_backward(fused, factory_of(info))
    train_ordinarily(plain, optimizer)
    train_ordinarily(fused, handle.optimizer)
    assert same_bits(snapshot(optimizer), snapshot(handle.optimizer))


@each_in_backward
def test_never_more_than_one_gradient_exists(info):
    """What it is for: the gradient of a tensor is gone before that of the next is complete."""
    model = network()
    most = 0

    def count(p):
        nonlocal most
        most = max(most, sum(q.grad is not None for q in model.parameters()))

    for p in model.parameters():  # before ours, so that they see every gradient while it is there
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(count)
    fisheropt.step_in_backward(model, factory_of(info))
    train_in_backward(model, steps=2)
    assert most == 1


@each_in_backward
def test_remove_goes_back_to_ordinary_steps(info):
    plain, fused = network(), network()
    optimizer = ordinary(info, plain)
    handle = fisheropt.step_in_backward(fused, factory_of(info))
    train_ordinarily(plain, optimizer, steps=2)
    train_in_backward(fused, steps=2)
    handle.remove()
    before = snapshot(handle.optimizer)
    loss_of(fused, 2).backward()
    assert same_bits(snapshot(handle.optimizer), before)
    assert all(p.grad is not None for p in fused.parameters() if p.requires_grad)
    handle.optimizer.zero_grad()
    train_ordinarily(plain, optimizer, steps=2, start=2)
    train_ordinarily(fused, handle.optimizer, steps=2, start=2)
    assert same_bits(snapshot(optimizer), snapshot(handle.optimizer))
    handle.remove()


@each_in_backward
def test_its_checkpoint_is_that_of_an_ordinary_optimizer_and_goes_both_ways(info):
    plain, fused = network(), network()
    optimizer = ordinary(info, plain)
    handle = fisheropt.step_in_backward(fused, factory_of(info, lr=0.5))
    train_ordinarily(plain, optimizer, steps=2)
    fused.load_state_dict(plain.state_dict())
    handle.load_state_dict(optimizer.state_dict())
    train_ordinarily(plain, optimizer, steps=2, start=2)
    train_in_backward(fused, steps=2, start=2)
    assert same_bits(snapshot(optimizer), snapshot(handle.optimizer))
    optimizer.load_state_dict(handle.state_dict())
    assert same_bits(snapshot(optimizer), snapshot(handle.optimizer))


def test_a_gradient_that_is_there_already_is_refused():
    """The next backward would add to it, which no ordinary step does."""
    model = network()
    loss_of(model, 0).backward()
    with pytest.raises(ValueError, match="zero_grad"):
        fisheropt.step_in_backward(model, fisheropt.FAdam)


def test_an_optimizer_that_couples_tensors_is_refused():
    with pytest.raises(TypeError, match="SGD"):
        fisheropt.step_in_backward(network(), partial(torch.optim.SGD, lr=0.1))
