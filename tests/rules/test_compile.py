"""backend="compile": the same rule, the same oracle, and one compilation however the schedule goes."""

import numpy as np
import pytest
import torch
from tests.cases import TOLERANCE, each_exact_dtype, each_optimizer, gradients, parameter, relative_error, state_of
from tests.oracle.fadam import fadam

from fisheropt import FAdam

SHAPES = ((7,), (5, 3))
OTHER_SHAPES = ((11,), (4, 9))
STEPS = 20


def schedule(info, t):
    """What a learning-rate scheduler and one that cycles the momentum, where it can, may change."""
    cycled = {"betas": (0.9 - 0.01 * (t % 3), 0.999)} if info.has("betas") else {}
    return {"lr": 1e-2 * (1.0 + np.sin(t)), **cycled}


@each_exact_dtype
@each_optimizer
@pytest.mark.usefixtures("compiler")
def test_a_compiled_rule_is_the_oracles_and_compiled_once(info, dtype):
    """After the first step nothing may compile again: not for another step, rate or beta, nor for another size."""
    options = {"weight_decay": 1e-3, **info.small}
    params = [parameter(shape, dtype=dtype) for shape in (*SHAPES, *OTHER_SHAPES)]
    optimizer = info.make(params, backend="compile", **options)
    grads = [gradients(shape, scale=0.1, steps=STEPS, dtype=dtype) for shape in (*SHAPES, *OTHER_SHAPES)]
    expected = [(p.detach().double().numpy(), None) for p in params]

    def step(t, tensors):
        optimizer.param_groups[0].update(schedule(info, t))
        for i, p in enumerate(tensors):
            p.grad = grads[i][t].clone()
            expected[i] = info.oracle(
                *(expected[i][0], grads[i][t].double().numpy(), expected[i][1]), **schedule(info, t), **options
            )
        optimizer.step()

    step(0, params[: len(SHAPES)])
    with torch.compiler.set_stance("fail_on_recompile"):
        for t in range(1, STEPS):
            step(t, params[: len(SHAPES)] if t < 10 else params)  # the others have no gradient before
        for p, (value, reference) in zip(params, expected, strict=True):
            assert relative_error(p, value) <= TOLERANCE[dtype]
            for slot, kept in state_of(optimizer, p).items():
                assert slot == "step" or relative_error(kept, reference[slot]) <= TOLERANCE[dtype]
        for size in (0.0, 1e30, 1e-30, 0.0):
            for p in params:
                p.grad = torch.full_like(p, size)
            optimizer.step()
            assert all(p.isfinite().all() for p in params)
            assert all(kept.isfinite().all() for p in params for kept in state_of(optimizer, p).values())


@pytest.mark.usefixtures("compiler")
def test_a_rule_without_momentum_clip_or_decay_compiles_too():
    """The other branches of the rule; and what is a number in the graph may change, at the price of another graph."""

    options = {"betas": (0.0, 0.99), "clip": None, "weight_decay": 0.0, "rho": 0.7, "eps2": None}
    p = parameter((7,), dtype=torch.float64)
    start, g = p.detach().numpy().copy(), gradients((7,), scale=0.1, steps=4, dtype=torch.float64)
    optimizer = FAdam([p], lr=0.01, backend="compile", **options)
    value, state = start, None
    for t, row in enumerate(g):
        options["rho"] = optimizer.param_groups[0]["rho"] = 0.7 if t < 2 else 0.5
        p.grad = row
        optimizer.step()
        value, state = fadam(value, row.numpy(), state, lr=0.01, **options)
    assert relative_error(p, value) <= TOLERANCE[torch.float64]
    assert relative_error(optimizer.state[p]["f"], state["f"]) <= TOLERANCE[torch.float64]
