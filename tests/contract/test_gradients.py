"""Gradients: missing, late, in any memory layout, sparse, not finite; and never written to."""

import math

import pytest
import torch
from tests.cases import (
    TOLERANCE,
    each_optimizer,
    each_rule,
    gradients,
    oracle_run,
    parameter,
    relative_error,
    same_bits,
    snapshot,
    state_of,
    train,
)


def stepped(info, p, *grads, **options):
    optimizer = info.make([p], lr=0.1, **(info.small | options))
    for g in grads:
        p.grad = g
        optimizer.step()
    return optimizer


@each_optimizer
def test_a_parameter_without_a_gradient_is_left_alone(info):
    p, q = parameter((3,)), parameter((3,), seed=1)
    before = q.detach().clone()
    optimizer = info.make([p, q], weight_decay=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(q, before)
    assert q not in optimizer.state
    assert q.grad is None


@each_optimizer
def test_a_step_without_any_gradient_does_nothing(info):
    p = parameter((3,))
    optimizer = info.make([p])
    before = snapshot(optimizer)
    assert optimizer.step() is None
    assert same_bits(snapshot(optimizer), before)


@each_rule
def test_a_first_gradient_that_arrives_late_is_the_tensors_first_step(info, backend):
    """Steps are counted per tensor: at its first, whenever that is, f forgets where it started."""
    early, late = parameter((4, 5), dtype=torch.float64), parameter((4, 5), dtype=torch.float64, seed=1)
    g = gradients((4, 5), scale=0.1, steps=6, dtype=torch.float64)
    start = late.detach().clone()
    optimizer = info.make([early, late], backend=backend, **info.small)
    for i, row in enumerate(g):
        early.grad = row.clone()
        late.grad = row.clone() if i in (2, 3, 5) else None
        optimizer.step()
    assert int(optimizer.state[early]["step"]) == 6
    assert int(optimizer.state[late]["step"]) == 3
    expected, reference = oracle_run(info, start, g[[2, 3, 5]], **info.small)
    assert relative_error(late, expected) <= TOLERANCE[torch.float64]
    for slot, value in state_of(optimizer, late).items():
        assert slot == "step" or relative_error(value, reference[slot]) <= TOLERANCE[torch.float64]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "first dimension last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second element": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0],
    "a window of a larger tensor": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1), value=torch.nan)[..., 3:-1, 1:-2],
}


@each_rule
@pytest.mark.parametrize("of_g", LAYOUTS)
@pytest.mark.parametrize("of_p", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 2)], ids=str)
def test_memory_layout_makes_no_difference(info, backend, shape, of_p, of_g):
    """The NaN around windows and between strided elements would show if anything outside the tensor were read."""
    options = {"min_dim_size_to_factor": 3} if info.factors else {}  # the second shape is not factored
    start = parameter(shape, dtype=torch.float64).detach()
    g = gradients(shape, scale=0.1, steps=3, dtype=torch.float64)
    p = LAYOUTS[of_p](start.clone()).requires_grad_()
    strides = p.stride()
    given = [LAYOUTS[of_g](row) for row in g]
    optimizer = stepped(info, p, *given, backend=backend, weight_decay=0.1, **options)
    assert p.stride() == strides
    expected, reference = oracle_run(info, start, g, lr=0.1, weight_decay=0.1, **options)
    assert relative_error(p, expected) <= TOLERANCE[torch.float64]
    for slot, value in state_of(optimizer, p).items():
        assert slot == "step" or relative_error(value, reference[slot]) <= TOLERANCE[torch.float64]


@each_rule
def test_a_parameter_that_changes_its_layout_midway_keeps_its_state(info, backend):
    """model.to(memory_format=torch.channels_last) replaces p.data under the optimizer."""
    start = parameter((2, 3, 4, 5), dtype=torch.float64).detach()
    g = gradients((2, 3, 4, 5), scale=0.1, steps=4, dtype=torch.float64)
    p = start.clone().requires_grad_()
    optimizer = stepped(info, p, *g[:2], backend=backend)
    p.data = p.data.contiguous(memory_format=torch.channels_last)
    for row in g[2:]:
        p.grad = row.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    expected, _ = oracle_run(info, start, g, lr=0.1, **info.small)
    assert relative_error(p, expected) <= TOLERANCE[torch.float64]


@each_rule
def test_a_window_of_a_larger_tensor_is_stepped_and_nothing_else(info, backend):
    large = torch.full((6, 8), 7.0)
    p = large[1:4, 2:7].requires_grad_()
    stepped(info, p, torch.ones(3, 5), backend=backend)
    outside = torch.ones(6, 8, dtype=torch.bool)
    outside[1:4, 2:7] = False
    assert (large[outside] == 7.0).all()
    assert (p < 7.0).all()


@each_rule
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_an_expanded_gradient_is_what_its_copy_is(info, backend, shape):
    """loss.sum() gives such a gradient: one number behind every element."""
    p, q = parameter(shape), parameter(shape)
    g = torch.tensor(0.3).expand(shape)
    stepped(info, p, g, g, backend=backend)
    stepped(info, q, g.contiguous(), g.contiguous(), backend=backend)
    assert relative_error(p, q.detach().double().numpy()) <= 1e-7


@each_rule
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)])
def test_an_empty_tensor_takes_steps(info, backend, shape):
    p, q = parameter(shape), parameter((2,))
    optimizer = info.make([p, q], backend=backend, **info.small)
    train(optimizer, {p: torch.zeros(2, *shape), q: torch.ones(2, 2)})
    assert p.shape == shape
    assert int(optimizer.state[p]["step"]) == 2
    optimizer.load_state_dict(optimizer.state_dict())


@each_optimizer
def test_a_tied_parameter_is_stepped_once_with_the_sum_of_its_gradients(info):
    embedding, head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = torch.nn.Sequential(embedding, head)
    alone = embedding.weight.detach().clone().requires_grad_()
    optimizer = info.make(model.parameters())
    model(torch.tensor([0, 3])).square().sum().backward()
    stepped_with = embedding.weight.grad.clone()
    optimizer.step()
    other = info.make([alone])
    alone.grad = stepped_with
    other.step()
    assert [p for p in optimizer.state if isinstance(p, torch.Tensor)] == [embedding.weight]
    assert torch.equal(embedding.weight, alone)


@each_rule
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_is_never_written_to(info, backend, maximize, dtype):
    params = [parameter(shape, dtype=dtype, seed=i) for i, shape in enumerate([(), (7,), (4, 5), (2, 3, 4)])]
    for p in params:
        p.grad = gradients(tuple(p.shape), scale=0.1, steps=1, dtype=dtype)[0]
    params.append(parameter((4, 5), dtype=dtype))
    params[-1].grad = torch.ones(5, 4, dtype=dtype).t()
    kept = [(p.grad, p.grad.clone(), p.grad._version) for p in params]
    optimizer = info.make(params, maximize=maximize, backend=backend, **info.small)
    for _ in range(2):
        optimizer.step()
    for p, (grad, bits, version) in zip(params, kept, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, bits)
        assert grad._version == version


@each_rule
def test_maximize_goes_where_the_opposite_gradient_goes(info, backend):
    p, q = parameter((4, 5)), parameter((4, 5))
    g = gradients((4, 5), scale=0.1, steps=3, dtype=torch.float32)
    up = stepped(info, p, *g, maximize=True, backend=backend)
    down = stepped(info, q, *(-row for row in g), backend=backend)
    assert same_bits(snapshot(up), snapshot(down))


@each_optimizer
def test_a_sparse_gradient_is_refused_before_anything_changes(info):
    first, last = parameter((3,)), parameter((4,), seed=1)
    table = torch.nn.Embedding(6, 3, sparse=True)
    optimizer = info.make([{"params": [first]}, {"params": [table.weight, last]}])
    for p in (first, last):
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = snapshot(optimizer)
    table(torch.tensor([1, 4])).sum().backward()
    with pytest.raises(TypeError, match=r"sparse.*\(6, 3\)"):
        optimizer.step()
    assert same_bits(snapshot(optimizer), before)
    assert table.weight not in optimizer.state


@each_optimizer
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_stays_in_its_tensor_and_a_nan_shows(info, value):
    """D6: nothing couples tensors, so the others are right, and a NaN is not made to look like a number."""
    hit, spared, alone = parameter((4,)), parameter((4,), seed=1), parameter((4,), seed=1)
    optimizer, other = info.make([hit, spared]), info.make([alone])
    hit.grad = torch.tensor([1.0, value, 1.0, 1.0])
    spared.grad, alone.grad = torch.ones(4), torch.ones(4)
    optimizer.step()
    other.step()
    assert hit.isnan().any() or not math.isnan(value)
    assert torch.equal(spared, alone)


@each_optimizer
def test_gradients_that_require_gradients_leave_no_graph_behind(info):
    """backward(create_graph=True) leaves them; a step must not be recorded."""
    p = parameter((3,))
    optimizer = info.make([p])
    (g,) = torch.autograd.grad((p**2).sum(), p, create_graph=True)
    p.grad = g
    optimizer.step()
    assert p.is_leaf
    assert p.requires_grad
    assert not any(value.requires_grad for value in state_of(optimizer, p).values())
