"""Dtypes: each parameter keeps its own, its state is at least float32, and a checkpoint changes neither."""

import io

import pytest
import torch
from tests.cases import each_optimizer, gradients, parameter, same_bits, snapshot, state_of, train

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def mixed(info, **options):
    """One group with a parameter of every dtype, after some steps."""
    params = [parameter((4, 5), dtype=dtype, seed=i) for i, dtype in enumerate(DTYPES)]
    optimizer = info.make(params, lr=0.01, **(info.small | options))
    train(optimizer, {p: gradients((4, 5), scale=0.1, steps=3, dtype=p.dtype) for p in params})
    return optimizer, params


@each_optimizer
def test_dtypes_mix_in_one_group_and_each_parameter_is_as_it_would_be_alone(info):
    _, params = mixed(info)
    for i, (p, dtype) in enumerate(zip(params, DTYPES, strict=True)):
        alone = parameter((4, 5), dtype=dtype, seed=i)
        train(info.make([alone], lr=0.01, **info.small), {alone: gradients((4, 5), scale=0.1, steps=3, dtype=dtype)})
        assert p.dtype == dtype
        assert torch.equal(p, alone)


@each_optimizer
def test_the_state_is_float32_at_least(info):
    optimizer, params = mixed(info)
    for p, dtype in zip(params, (torch.float64, torch.float32, torch.float32, torch.float32), strict=True):
        state = state_of(optimizer, p)
        assert state["step"].dtype == torch.int64
        assert state["step"].shape == ()
        assert {state[slot].dtype for slot in state.keys() - {"step"}} == {dtype}


@each_optimizer
def test_the_state_has_the_slots_that_are_needed_and_no_others(info):
    for options in ({}, info.without_momentum, *([{"momentum": False}] if info.factors else [])):
        optimizer, params = mixed(info, **options)
        for p in params:
            assert state_of(optimizer, p).keys() == {"step"} | info.slots((4, 5), **(info.small | options))


@each_optimizer
def test_a_factored_state_is_as_large_as_a_row_and_a_column(info):
    """The point of factoring: n + k numbers for n k of them."""
    p = parameter((200, 300))
    optimizer = info.make([p], **info.without_momentum)
    p.grad = torch.ones_like(p)
    optimizer.step()
    numbers = sum(value.numel() for name, value in state_of(optimizer, p).items() if name != "step")
    assert numbers == (500 if info.factors else 60_000)


@each_optimizer
def test_a_checkpoint_keeps_every_dtype_and_every_bit(info):
    """torch's own load_state_dict would round the float32 state of a bfloat16 parameter to bfloat16."""
    optimizer, params = mixed(info)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = info.make(copies, lr=0.5, **info.small)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same_bits(snapshot(other), snapshot(optimizer))
    grads = [gradients((4, 5), scale=0.1, steps=2, dtype=dtype, seed=9) for dtype in DTYPES]
    train(optimizer, dict(zip(params, grads, strict=True)))
    train(other, dict(zip(copies, grads, strict=True)))
    assert same_bits(snapshot(other), snapshot(optimizer))


@each_optimizer
def test_a_wider_state_survives_a_checkpoint(info):
    p, q = parameter((4, 5)), parameter((4, 5))
    optimizer = info.make([p], state_dtype=torch.float64, **info.small)
    train(optimizer, {p: gradients((4, 5), scale=0.1, steps=2, dtype=torch.float32)})
    other = info.make([q], **info.small)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["state_dtype"] == torch.float64
    assert {v.dtype for name, v in state_of(other, q).items() if name != "step"} == {torch.float64}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_optimizer
def test_a_gradient_of_another_dtype_than_the_parameters_is_the_parameters_affair(info, dtype):
    """torch refuses it when it is assigned, so no optimizer ever meets one."""
    p = parameter((3,), dtype=dtype)
    other = torch.float32 if dtype != torch.float32 else torch.float64
    with pytest.raises(RuntimeError, match="type"):
        p.grad = torch.ones(3, dtype=other)
    info.make([p]).step()
