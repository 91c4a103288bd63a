"""Each of the lab's rules against an oracle in NumPy: the parameter and every slot, and that it is not another rule."""

import numpy as np
import pytest
import torch
from tests.oracle import variants as oracles
from tests.oracle.fadam import fadam as fadam_oracle

from fisheropt import FAdam
from fisheropt_lab.ablations.changes import LABELS, FAdamWith
from fisheropt_lab.ablations.rules import VARIANTS

OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-3, "eps2": 0.05, "clip": 0.8, "rho": 0.6, "weight_decay": 0.1}
STEPS = 12


def gradients():
    """Where a parameter starts, and gradients of sizes over six decades, so that epsilon and clip both matter."""
    random = np.random.default_rng(3)
    start = random.normal(size=(5, 7))
    return start, random.normal(size=(STEPS, 5, 7)) * 10.0 ** random.integers(-4, 2, (STEPS, 1, 1))


def run(rule, dtype=torch.float64):
    """A parameter and its state after a few steps, and the same by the oracle."""
    start, grads = (torch.from_numpy(x).to(dtype) for x in gradients())
    p = torch.nn.Parameter(start.clone())
    expected, state = start.double().numpy(), None
    optimizer = FAdamWith([p], rule=rule, backend="eager", **OPTIONS)
    for g in grads:
        p.grad = g
        optimizer.step()
        expected, state = getattr(oracles, rule)(expected, g.double().numpy(), state, **OPTIONS)
    return p.detach(), optimizer.state[p], expected, state


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_parameter_and_slots_are_the_oracles(rule, dtype, tolerance):
    p, state, expected, reference = run(rule, dtype)
    for mine, theirs in ((p, expected), (state["f"], reference["f"]), (state["m"], reference["m"])):
        assert np.abs(mine.double().numpy() - theirs).max() <= tolerance * np.abs(theirs).max()


def test_every_rule_differs_from_fadam_and_from_every_other():
    results = {rule: run(rule)[2] for rule in VARIANTS}
    expected, grads = gradients()
    state = None
    for g in grads:
        expected, state = fadam_oracle(expected, g, state, **OPTIONS)
    results["fadam"] = expected
    names = list(results)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.abs(results[a] - results[b]).max() > 1e-4, f"{a} and {b} are one rule"


@pytest.mark.parametrize(("rule", "option"), [("no_clip", {"clip": None}), ("constant_epsilon", {"eps2": None})])
def test_two_of_them_are_options_of_fadam_too(rule, option):
    """The library's own rule with the option, to the last bits."""
    p, state, _, _ = run(rule)
    start, grads = map(torch.from_numpy, gradients())
    q = torch.nn.Parameter(start)
    optimizer = FAdam([q], backend="eager", **(OPTIONS | option))
    for g in grads:
        q.grad = g
        optimizer.step()
    torch.testing.assert_close(p, q.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(state["m"], optimizer.state[q]["m"], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", VARIANTS)
def test_no_gradient_at_all_changes_nothing_but_the_decay(rule):
    """SPEC D5: a component that never saw a gradient is not divided by zero."""
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.zeros(4)
    FAdamWith([p], rule=rule, backend="eager", weight_decay=0.0).step()
    assert torch.equal(p.detach(), torch.ones(4))


def test_all_taken_back_is_adamw():
    """With rho = 1/2, epsilon 0 and AdamW's decay, to rounding: 1 - b2hat corrects the second moment as AdamW does."""
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 0.0}
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    ours = FAdamWith([mine], rule="adam_like", backend="eager", **options)
    adamw = torch.optim.AdamW([theirs], **options)
    for i in range(20):
        g = torch.linspace(-1, 2, 9, dtype=torch.float64) * (i % 3 - 1.2)
        mine.grad, theirs.grad = g, g.clone()
        ours.step()
        adamw.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_every_rule_has_a_label():
    assert set(LABELS) == set(VARIANTS)
