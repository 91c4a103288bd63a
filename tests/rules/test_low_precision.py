"""bfloat16 and float16 parameters: the rule runs in float32, and the parameter is rounded once a step."""

import pytest
import torch
from tests.cases import TOLERANCE, each_rule, gradients, learning_rate, parameter, relative_error, state_of, train

SHAPES = ((), (7,), (64, 65))
STEPS = 20


def rounded_oracle(info, p, grads, **options):
    """The oracle, with the parameter rounded to its dtype after every step."""
    p, state = p.detach(), None
    for g in grads:
        value, state = info.oracle(p.double().numpy(), g.double().numpy(), state, **options)
        p = torch.as_tensor(value).to(p.dtype)
    return p, state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_rule
def test_the_parameter_is_the_rounded_oracles_and_the_state_is_float32(info, backend, dtype):
    """An error of 1e-7 tips a rounding now and then, about once in 10^4: then it is one unit in the last place off."""
    options = {"weight_decay": 1e-3, **info.small}
    options["lr"] = learning_rate(info, options, scale=0.1)
    params = [parameter(shape, dtype=dtype, seed=i) for i, shape in enumerate(SHAPES)]
    starts = [p.detach().clone() for p in params]
    grads = [gradients(shape, scale=0.1, steps=STEPS, dtype=dtype, seed=i) for i, shape in enumerate(SHAPES)]
    optimizer = info.make(params, backend=backend, **options)
    train(optimizer, dict(zip(params, grads, strict=True)))
    for p, start, g in zip(params, starts, grads, strict=True):
        expected, reference = rounded_oracle(info, start, g, **options)
        assert p.dtype == dtype
        off = (p.detach().double() - expected.double()).abs()
        assert (off <= torch.finfo(dtype).eps * expected.double().abs()).all()
        assert (off > 0).double().mean() <= 0.01
        for slot, value in state_of(optimizer, p).items():
            if slot != "step":
                assert value.dtype == torch.float32
                assert relative_error(value, reference[slot]) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_rule
def test_a_wider_state_is_the_oracles_in_float64(info, backend, dtype):
    """Under the default weight decay no slot depends on how p is rounded, so the state is as exact as float64 is."""
    p = parameter((5, 6), dtype=dtype)
    start, g = p.detach().clone(), gradients((5, 6), scale=0.1, steps=STEPS, dtype=dtype)
    optimizer = info.make([p], state_dtype=torch.float64, backend=backend, **info.small)
    train(optimizer, {p: g})
    _, reference = rounded_oracle(info, start, g, **info.small)
    assert p.dtype == dtype
    for slot, value in state_of(optimizer, p).items():
        if slot != "step":
            assert value.dtype == torch.float64
            assert relative_error(value, reference[slot]) <= TOLERANCE[torch.float64]
