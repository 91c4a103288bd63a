"""SPEC D5: no finite gradient makes a NaN or an infinity, and statistics are right at the ends of a dtype's range."""

import math

import pytest
import torch
from tests.cases import (
    RULES,
    TOLERANCE,
    each_fisher_rule,
    each_rule,
    each_rule_with_eps,
    gradients,
    oracle_run,
    parameter,
    relative_error,
    same_bits,
    state_of,
)
from tests.oracle.fadam import rms

SHAPES = ((), (1,), (50,), (6, 9), (2, 6, 9))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def ends(dtype):
    """0, 1e-30, 1e30, and numbers near the ends of the dtype; what it cannot hold becomes the nearest it can."""
    first, last = torch.finfo(dtype).smallest_normal, min(torch.finfo(dtype).max / 2, 1e300)
    return sorted({0.0, first, max(first, 1e-30), min(1e30, last), last})


def of_size(shape, size, dtype, seed=0):
    """A gradient of either sign whose elements are within a factor of e of ``size``."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.empty(shape, dtype=torch.float64).uniform_(-1.0, 0.0, generator=generator).exp()
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (spread * sign * size).to(dtype)


def orders(sizes, steps):
    """Every size again and again, and every size after every other."""
    return [
        [sizes[(i + t * stride) % len(sizes)] for t in range(steps)] for i in range(len(sizes)) for stride in (0, 1, 2)
    ]


@each_dtype
@pytest.mark.parametrize("unbounded", [False, True], ids=["bounded", "unbounded"])
@each_rule
def test_no_finite_gradient_gives_anything_that_is_not_finite(info, backend, unbounded, dtype):
    if unbounded and info.bound is None:
        pytest.skip("has no bound to take away")
    options = [{"weight_decay": 0.1}, *([{"weight_decay": 0.1, "eps": 0.0}] if info.has("eps") else [])]
    if info.fisher:
        options = [{**o, "rho": rho} for o in options for rho in (0.3, 0.5, 1.0)]
    if unbounded:
        options = [{**o, info.bound: None} for o in options]
    plans = [
        (order, option, [parameter(shape, dtype=dtype) for shape in SHAPES])
        for order in orders(ends(dtype), steps=8)
        for option in options
    ]
    optimizer = info.make([{"params": p, **info.small, **option} for _, option, p in plans], backend=backend)
    for step in range(8):
        for order, _, params in plans:
            for p in params:
                p.grad = of_size(tuple(p.shape), order[step], dtype, seed=step)
        optimizer.step()
    for order, option, params in plans:
        for p in params:
            what = f"{option}, gradients {order}, shape {tuple(p.shape)}"
            assert p.isfinite().all(), what
            assert all(value.isfinite().all() for value in state_of(optimizer, p).values()), what


@each_dtype
@each_rule
def test_an_all_zero_gradient_changes_nothing(info, backend, dtype):
    """The Fisher optimizers with their weight decay; the baselines decay outside the metric, so without."""
    options = info.small if info.fisher else {**info.small, "weight_decay": 0.0}
    params = [parameter(shape, dtype=dtype) for shape in (*SHAPES, (0,))]
    before = [p.detach().clone() for p in params]
    optimizer = info.make(params, backend=backend, **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert same_bits([p.detach() for p in params], before)


@each_rule
def test_after_zero_gradients_training_is_the_oracles(info, backend):
    """LoRA's B starts at zero, so that A's first gradient is zero."""
    start = parameter((4, 5), dtype=torch.float64)
    p = start.detach().clone().requires_grad_()
    g = gradients((4, 5), scale=1.0, steps=6, dtype=torch.float64)
    g[:2] = 0.0
    optimizer = info.make([p], backend=backend, **info.small)
    for row in g:
        p.grad = row
        optimizer.step()
    expected, _ = oracle_run(info, start, g, **info.small)
    assert relative_error(p, expected) <= 1e-12


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@each_rule_with_eps
def test_components_that_never_have_a_gradient_are_the_oracles(info, backend, eps):
    """Rows of an embedding: with eps = 0 their denominator is exactly zero."""
    start = parameter((5, 6), dtype=torch.float64)
    p = start.detach().clone().requires_grad_()
    g = gradients((5, 6), scale=1.0, steps=4, dtype=torch.float64)
    g[:, 2] = 0.0
    g[:, :, 4] = 0.0
    options = {**info.small, "eps": eps, "weight_decay": 1e-3}
    optimizer = info.make([p], backend=backend, **options)
    for row in g:
        p.grad = row
        optimizer.step()
    expected, reference = oracle_run(info, start, g, **options)
    assert relative_error(p, expected) <= 1e-12
    for slot in optimizer.state[p].keys() - {"step"}:
        assert relative_error(optimizer.state[p][slot], reference[slot]) <= 1e-12


# A constant epsilon makes small steps of small gradients: those of the baselines are bounded at the upper end only.
@pytest.mark.parametrize(
    ("info", "backend", "dtype", "size"),
    [
        pytest.param(info, backend, dtype, size, id=f"{info}-{backend}-{dtype}-{size:.0e}")
        for info, backend in RULES
        for dtype in DTYPES
        for size in ends(dtype)
        if size > (0.0 if info.fisher else 1.0) and info.bound is not None
    ],
)
def test_the_bound_on_a_step_is_exact_at_the_ends(info, backend, dtype, size):
    """Its bound is met to rounding, which it is only if no square over- or underflowed on the way to the rms."""
    bound = 0.25
    options = {info.bound: bound, "weight_decay": 0.0, **info.small}
    p = torch.zeros(6, 9, dtype=dtype, requires_grad=True)
    optimizer = info.make([p], lr=1.0, betas=(0.0, 0.999), backend=backend, **options)
    p.grad = of_size((6, 9), size, dtype)
    optimizer.step()
    length = p.detach().double().square().mean().sqrt().item()
    if info.bound == "max_norm":
        length *= math.sqrt(p.numel())
    assert length == pytest.approx(bound, rel=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_fisher_rule
def test_the_adaptive_epsilon_is_right_where_squares_underflow(info, backend, dtype):
    """f is 0 there, and what is left of the metric is ehat = eps2 rms(g), so that gbar = g / ehat."""
    size = 1e-30 if dtype is torch.float32 else 1e-200
    g = of_size((6, 9), size, dtype)
    p = torch.zeros(6, 9, dtype=dtype, requires_grad=True)
    optimizer = info.make([p], lr=1.0, betas=(0.0, 0.999), weight_decay=0.0, clip=None, backend=backend, **info.small)
    p.grad = g
    optimizer.step()
    expected = -g.double().numpy() / (0.01 * rms(g.double().numpy()))
    assert relative_error(p, expected) <= TOLERANCE[dtype]


@each_rule
def test_a_tensor_of_zeros_between_others_keeps_its_state_at_zero(info, backend):
    p, q = parameter((6, 9)), parameter((6, 9))
    optimizer = info.make([p, q], backend=backend, **info.small)
    p.grad, q.grad = torch.zeros(6, 9), torch.ones(6, 9)
    optimizer.step()
    zero = [value for name, value in state_of(optimizer, p).items() if name != "step"]
    assert len(zero) == len(info.slots((6, 9), **info.small))
    assert all(value.abs().max() <= 1e-28 for value in zero)  # Adafactor adds 1e-30 to each square
