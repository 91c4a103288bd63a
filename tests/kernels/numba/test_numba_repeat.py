"""A step repeats the calls of the step before it where nothing has changed, and only there."""

import copy
import pickle

import pytest
import torch
from tests.cases import gradients, parameter, same_bits, snapshot

from fisheropt import FAdafactor, FAdam
from fisheropt._repeat import Repeat

pytest.importorskip("numba")

SHAPES = ((5,), (40, 30), (130, 128))


@pytest.fixture
def repeated(monkeypatch):
    """How often each step was a repetition."""
    outcomes = []
    run = Repeat.run

    def watched(self, *args):
        outcomes.append(run(self, *args))
        return outcomes[-1]

    monkeypatch.setattr(Repeat, "run", watched)
    return outcomes


def made(cls=FAdam, **options):
    return cls([parameter(shape, seed=i) for i, shape in enumerate(SHAPES)], lr=1e-2, backend="numba", **options)


def stepped(optimizer, t, *, forget):
    """Step ``t``, with new gradients; ``forget``: as if it were the first."""
    for i, p in enumerate(optimizer.param_groups[0]["params"]):
        p.grad = gradients(p.shape, scale=1e-2, steps=1, dtype=p.dtype, seed=10 * t + i)[0]
        if not p.is_contiguous():
            p.grad = p.grad.t().contiguous().t()
    if forget:
        optimizer.__dict__.pop("_repeats", None)
    optimizer.step()


def other_memory(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        p.data = p.data.clone()


def other_layout(optimizer):
    p = optimizer.param_groups[0]["params"][1]
    p.data = p.data.t().contiguous().t()


def other_dtype(optimizer):
    for p in optimizer.param_groups[0]["params"]:
        p.grad = None
        p.data = p.data.bfloat16()


def other_state(optimizer):
    for state in optimizer.state.values():
        state["m"] = state["m"] * 2


def narrower_state(optimizer):
    p = optimizer.param_groups[0]["params"][0]
    optimizer.state[p]["m"] = torch.zeros(2 * p.numel())[::2]


def loaded(optimizer):
    other = made(type(optimizer))
    for t in range(3):
        stepped(other, 7 + t, forget=True)
    optimizer.load_state_dict(other.state_dict())


def one_parameter_less(optimizer):
    optimizer.param_groups[0]["params"].pop(1)


def one_parameter_more(optimizer):
    optimizer.param_groups[0]["params"].append(parameter((6, 7), seed=9))


def options(**changed):
    def change(optimizer):
        optimizer.param_groups[0].update(changed)

    return pytest.param(change, id=",".join(f"{name}={value}" for name, value in changed.items()))


CHANGES = [
    other_memory,
    other_layout,
    other_dtype,
    other_state,
    narrower_state,
    loaded,
    one_parameter_less,
    one_parameter_more,
    options(lr=0.5, weight_decay=0.3),
    options(betas=(0.5, 0.9)),
    options(betas=(0.0, 0.9)),
    options(rho=2.0),
    options(clip=None),
    options(maximize=True),
    options(backend="eager"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_steps_is_noticed(change):
    ends = []
    for forget in (True, False):
        optimizer = made()
        for t in range(3):
            stepped(optimizer, t, forget=forget)
        change(optimizer)
        for t in range(3, 5):
            stepped(optimizer, t, forget=forget)
        ends.append(snapshot(optimizer))
    assert same_bits(*ends)


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.bfloat16}, {"state_dtype": "int8"}], ids=str)
def test_a_step_with_new_gradients_is_a_repetition(options, repeated):
    """Of 8-bit state too, which small tensors do not have."""
    optimizer, expected = made(**options), made(**options)
    for t in range(4):
        stepped(optimizer, t, forget=False)
        optimizer.zero_grad()
    assert repeated == [True] * 3
    for t in range(4):
        stepped(expected, t, forget=True)
    assert same_bits(snapshot(optimizer), snapshot(expected))


def test_factored_matrices_are_repeated_too(repeated):
    optimizer = made(FAdafactor)
    for t in range(3):
        stepped(optimizer, t, forget=False)
    assert repeated == [True] * 2


def test_a_schedule_does_not_end_the_repetition(repeated):
    optimizer = made()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    for t in range(4):
        stepped(optimizer, t, forget=False)
        schedule.step()
    assert repeated == [True] * 3


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"])
def test_a_copy_steps_its_own_tensors(again):
    first, expected = made(), made()
    for t in range(2):
        stepped(first, t, forget=False)
        stepped(expected, t, forget=True)
    before = snapshot(first)
    second = again(first)
    stepped(second, 2, forget=False)
    stepped(expected, 2, forget=True)
    assert same_bits(snapshot(first), before)
    assert same_bits(snapshot(second), snapshot(expected))


def test_a_missing_gradient_is_noticed():
    optimizer = made()
    for t in range(2):
        stepped(optimizer, t, forget=False)
    p, *others = optimizer.param_groups[0]["params"]
    before = p.detach().clone()
    p.grad = None
    optimizer.step()
    assert torch.equal(p, before)
    assert int(optimizer.state[p]["step"]) == 2
    assert all(int(optimizer.state[q]["step"]) == 3 for q in others)
