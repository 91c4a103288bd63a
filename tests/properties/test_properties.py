"""What must hold for any tensors, options and groupings, on examples that Hypothesis draws from a fixed seed."""

import math

import hypothesis.strategies as st
import torch
from hypothesis import given
from tests.cases import INFO, RULES, gradients, numbers, parameter, same_bits, snapshot

STEPS = 2

infos = st.sampled_from(list(INFO.values()))
rules = st.sampled_from(RULES)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
matrices = st.tuples(st.integers(1, 5), st.integers(1, 5))
scales = st.sampled_from([1e-4, 1e-2, 1.0, 1e2])
seeds = st.integers(0, 2**16)
tensors = st.tuples(shapes, dtypes, scales, seeds)


@st.composite
def rules_with_options(draw, which=lambda info: True):
    info, backend = draw(rules.filter(lambda rule: which(rule[0])))
    return info, {"backend": backend, **info.small, **draw(st.sampled_from(info.variations))}


def make(drawn):
    """(parameter, its gradients) for each drawn tensor."""
    return [
        (parameter(shape, dtype=dtype, seed=seed), gradients(shape, scale=scale, steps=STEPS, dtype=dtype, seed=seed))
        for shape, dtype, scale, seed in drawn
    ]


def after(info, options, pairs, groups=None):
    """Every number of every tensor after the steps, in the order of ``pairs``, however the tensors are grouped."""
    groups = groups or [list(range(len(pairs)))]
    optimizer = info.make([{"params": [pairs[i][0] for i in group]} for group in groups], **options)
    for t in range(STEPS):
        for p, g in pairs:
            p.grad = g[t].clone()
        optimizer.step()
    return [number for p, _ in pairs for number in numbers(optimizer, p)]


@given(rules_with_options(), st.lists(tensors, min_size=1, max_size=5), st.data())
def test_regrouping_and_reordering_change_no_bit(rule, drawn, data):
    """Nothing is shared between tensors: not a norm, a count of steps, or a buffer of a batch."""
    info, options = rule
    order = data.draw(st.permutations(range(len(drawn))))
    cuts = data.draw(st.lists(st.booleans(), min_size=len(drawn), max_size=len(drawn)))
    groups = [[]]
    for i, cut in zip(order, cuts, strict=True):
        if cut:
            groups.append([])
        groups[-1].append(i)
    together = after(info, options, make(drawn))
    assert same_bits(after(info, options, make(drawn), groups), together)
    alone = [number for one in drawn for number in after(info, options, make([one]))]
    assert same_bits(alone, together)


@given(rules_with_options(), st.lists(tensors, min_size=1, max_size=3))
def test_maximizing_is_minimizing_the_opposite(rule, drawn):
    info, options = rule
    up = after(info, {**options, "maximize": True}, make(drawn))
    down = after(info, options, [(p, -g) for p, g in make(drawn)])
    assert same_bits(up, down)


@given(rules_with_options(), tensors)
def test_a_mirrored_problem_has_the_mirrored_solution(rule, drawn):
    """(p, g) -> (-p, -g): every rule is odd in the two together, to the last bit."""
    info, options = rule
    ((p, g),) = make([drawn])
    mirrored = [((-p).detach().requires_grad_(), -g)]
    there, back = after(info, options, [(p, g)]), after(info, options, mirrored)
    assert torch.equal(there[0], -back[0])


@given(
    rules_with_options(lambda info: info.units),
    st.tuples(shapes, st.sampled_from([torch.float64, torch.float32]), scales, seeds),
    st.integers(-8, 8),
)
def test_the_unit_of_the_loss_does_not_matter(rule, drawn, k):
    """Without an epsilon and with rho = 1/2, gradients times a power of two give the same bits of p."""
    info, options = rule
    options = {**options, "eps": 0.0, "weight_decay": 0.0, **({"rho": 0.5} if info.fisher else {})}
    options.pop("eps2", None)
    ((p, g),) = make([drawn])
    ((q, _),) = make([drawn])
    assert torch.equal(after(info, options, [(p, g)])[0], after(info, options, [(q, g * 2.0**k)])[0])


@given(rules_with_options(), st.tuples(matrices, st.just(torch.float64), scales, seeds))
def test_a_transposed_matrix_has_the_transposed_solution(rule, drawn):
    """Rows and columns have the same rights. The order of summation differs, so this holds to rounding."""
    info, options = rule
    ((p, g),) = make([drawn])
    q = p.detach().t().clone(memory_format=torch.contiguous_format).requires_grad_()
    options = {**options, "lr": 1e-6}  # so that unclipped steps of any size stay comparable
    there = after(info, options, [(p, g)])[0]
    back = after(info, options, [(q, g.transpose(1, 2).contiguous())])[0]
    torch.testing.assert_close(back.t(), there, rtol=1e-11, atol=1e-11 * there.abs().max().item())


def finite(dtype):
    """Any number of the dtype, down to the subnormals; only the upper half of the last binade is left out."""
    largest = torch.finfo(dtype).max / 2
    width = {torch.float64: 64, torch.float32: 32, torch.float16: 16}[dtype]
    return st.floats(-largest, largest, width=width, allow_nan=False, allow_infinity=False)


@given(rules_with_options(), st.sampled_from([torch.float64, torch.float32, torch.float16]), st.data())
def test_any_finite_gradients_leave_everything_finite(rule, dtype, data):
    info, options = rule
    shape = data.draw(shapes)
    n = math.prod(shape)
    p = parameter(shape, dtype=dtype)
    optimizer = info.make([p], **options)
    for _ in range(4):
        p.grad = torch.tensor(data.draw(st.lists(finite(dtype), min_size=n, max_size=n)), dtype=dtype).reshape(shape)
        optimizer.step()
        assert all(number.isfinite().all() for number in snapshot(optimizer))
