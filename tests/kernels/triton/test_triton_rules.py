"""Every kernel against the oracle, held to the error of the eager rule, at the edges of tiles, ranges and dtypes."""

import math

import pytest
import torch
from tests.cases import gradients, parameter, same_bits
from tests.kernels.triton.harness import DEVICE, RULES, lawless, run, switched  # noqa: F401

from fisheropt import FAdafactor

pytestmark = pytest.mark.usefixtures("switched")
each_rule = pytest.mark.parametrize("info", RULES, ids=str)
# chunks are of 64 elements, tiles of 32, strips of 8 rows and 16 columns


def shapes_of(info):
    """Of several chunks and strips; FAdafactor has some for either of its rules."""
    return ((9, 20), (2, 3, 5), (3,)) if info.factors else ((), (70,))


def start(shapes, dtype=torch.float32):
    return [parameter(shape, dtype=dtype, seed=i).detach() for i, shape in enumerate(shapes)]


def grads(shapes, scale, steps=2, dtype=torch.float32):
    return [gradients(shape, scale=scale, steps=steps, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("info", "options"),
    [
        pytest.param(info, options, id=f"{info}-{','.join(f'{k}={v}' for k, v in options.items())}")
        for info in RULES
        for options in info.variations
    ],
)
def test_a_kernel_is_as_near_to_the_oracle_as_the_rule(info, options):
    shapes = ((5, 7),)
    assert not lawless(info, start(shapes), grads(shapes, 0.1), **{**info.small, "lr": 1e-2, **options})


@each_rule
def test_every_size_around_a_tile_and_a_chunk(info):
    shapes = [(n,) for n in (1, 31, 32, 33, 63, 64, 65, 129)]
    if info.factors:  # 256 numbers of R or C at a time
        shapes = [(2, 2), (7, 15), (8, 16), (9, 17), (3, 9, 17), (257, 2), (2, 2, 129)]
    assert not lawless(info, start(shapes), grads(shapes, 1.0, steps=1), lr=1e-2, **info.small)


@each_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_parameters_and_gradients(info, dtype):
    shapes = shapes_of(info)
    assert not lawless(info, start(shapes, dtype), grads(shapes, 0.1, dtype=dtype), lr=1e-2, **info.small)


@each_rule
def test_gradients_on_both_sides_of_the_epsilon(info):
    """Where eps2 rms(g) < eps the first guess of ehat is wrong; then remembered, then wrong the other way."""
    shapes = shapes_of(info)
    g = grads(shapes, 1.0, steps=5)
    for rows in g:
        rows *= torch.tensor([1.0, 1e-9, 1e-9, 1.0, 1.0]).view(-1, *[1] * (rows.dim() - 1))
    assert not lawless(info, start(shapes), g, lr=1e-2, **info.small)
    remembering = run(info, start(shapes), g, **info.small)
    assert same_bits(remembering.numbers, run(info, start(shapes), g, forgetful=True, **info.small).numbers)


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_ends_of_the_range(info, dtype):
    """0, 1e-30 and 1e30 in turn: nothing that is not finite, and all-zero gradients change nothing."""
    last = min(1e30, torch.finfo(dtype).max)
    first = [parameter((5, 8), dtype=dtype).detach()]
    options = {"weight_decay": 0.1 if info.fisher else 0.0, "lr": 1e-3, **info.small}
    sign = gradients((5, 8), scale=1.0, steps=1, dtype=torch.float64).sign()
    assert same_bits(run(info, first, [(sign * 0.0).to(dtype)], **options).p, first)
    for order, eps in (((0.0, last, 1e-30), 0.0), ((1e-30, last, 0.0), 1e-8), ((last, 1e-30, last), 0.0)):
        g = torch.cat([sign * size for size in order]).to(dtype)
        assert all(x.isfinite().all() for x in run(info, first, [g], eps=eps, **options).numbers)


@each_rule
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_bound_on_a_step_is_met_at_the_ends(info, size):
    if not info.fisher and size < 1.0:
        pytest.skip("a constant epsilon makes small steps of small gradients")
    g = gradients((6, 9), scale=1.0, steps=1, dtype=torch.float32).sign() * size
    options = {"lr": 1.0, "betas": (0.0, 0.999), "weight_decay": 0.0, "clip": 0.25, **info.small}
    moved = run(info, [torch.zeros(6, 9)], [g], **options).p[0]
    assert moved.double().square().mean().sqrt().item() == pytest.approx(0.25, rel=1e-6)


@each_rule
@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(info, bad, clip):
    """As in the eager rule: the same elements are NaN, and those of other tensors never."""
    shapes = ((5, 8), (5, 8))
    g = grads(shapes, 1.0, steps=1)
    g[0][0, 4, 1] = bad
    options = {"lr": 1e-2, "weight_decay": 0.1, "clip": clip, **info.small}
    kernel, eager = (run(info, start(shapes), g, backend=name, **options) for name in ("triton", "eager"))
    for mine, theirs in zip(kernel.numbers, eager.numbers, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
    assert clip is None or bad == math.inf or kernel.p[0].isnan().all()
    assert kernel.p[1].isfinite().all()


@each_rule
def test_the_same_bits_every_time_and_in_any_company(info):
    shapes = (*shapes_of(info), (70,))
    g = grads(shapes, 1.0, steps=1)
    many = run(info, start(shapes), g, **info.small)
    assert same_bits(many.numbers, run(info, start(shapes), g, **info.small).numbers)
    for p, state, s, rows in zip(*many, start(shapes), g, strict=True):
        alone = run(info, [s], [rows], **info.small)
        assert same_bits([p, *state.values()], [alone.p[0], *alone.state[0].values()])


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_learning_rate_may_be_a_tensor(info, dtype):
    rate = torch.tensor(1e-2, dtype=torch.float32)
    shapes = shapes_of(info)
    g = grads(shapes, 1.0, steps=1)
    as_tensor = run(info, start(shapes), g, lr=rate.to(DEVICE, dtype), **info.small)
    assert same_bits(as_tensor.p, run(info, start(shapes), g, lr=rate.item(), **info.small).p)


@each_rule
def test_tensors_in_other_layouts_and_empty_ones(info):
    """The loop hands kernels flat views; a gradient in another layout than its parameter is put in order before."""
    p = torch.nn.Parameter(parameter((9, 8)).detach().to(DEVICE).t())
    empty = torch.nn.Parameter(torch.zeros(0, 3, device=DEVICE))
    g = gradients((8, 9), scale=1.0, steps=1, dtype=torch.float32)[0]
    expected = run(info, [p.detach().cpu().contiguous()], [g[None]]).p[0]
    p.grad, empty.grad = g.to(DEVICE), torch.zeros_like(empty)
    version = p._version
    info.make([p, empty], backend="triton").step()
    torch.testing.assert_close(p.detach().cpu(), expected, rtol=1e-6, atol=1e-7)
    assert p._version > version


@each_rule
def test_what_kernels_do_not_take_says_why(info):
    wide = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64, device=DEVICE))
    assert info.make([wide], backend="triton").backends() == {"0.0": "eager (triton: parameters are float64)"}
    small = info.make([torch.nn.Parameter(torch.zeros(3, device=DEVICE))], backend="triton", state_dtype=torch.bfloat16)
    assert small.backends() == {"0.0": "triton"}  # in float32, rounded by the loop


def test_matrices_that_are_not_the_last_two_dimensions_run_eagerly():
    p = torch.nn.Parameter(torch.zeros(9, 8, 2, device=DEVICE))
    assert FAdafactor([p], backend="triton", min_dim_size_to_factor=4).backends() == {
        "0.0": "eager (triton: the factored dimensions are not the last two)"
    }
    transposed = torch.nn.Parameter(torch.zeros(9, 8, device=DEVICE).t())
    assert FAdafactor([transposed], backend="triton", min_dim_size_to_factor=4).backends() == {
        "0.0": "eager (triton: a tensor is not contiguous)"
    }
