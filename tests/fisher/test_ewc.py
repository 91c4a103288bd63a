"""EWC against the sum of quadratics it stands for, and its decoupled step against the minimum of loss plus penalty."""

import copy
import math

import pytest
import torch
from torch import nn

from fisheropt import FAdafactor, FAdam
from fisheropt.baselines import NaturalAdam
from fisheropt.fisher import EWC, FisherDiagonal

DOUBLE = {"dtype": torch.float64}


def net(**options):
    return nn.Sequential(nn.Linear(3, 4, **options), nn.Tanh(), nn.Linear(4, 2, **options))


def some_fisher(model):
    return {name: torch.rand_like(p) * (torch.rand_like(p) > 0.3) for name, p in model.named_parameters()}


def wander(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def quadratic(model, strength, *terms):
    """strength/2 sum of F (theta - anchor)^2, as printed."""
    params = dict(model.named_parameters())
    return 0.5 * strength * sum((F[n] * (params[n] - a[n]) ** 2).sum() for F, a in terms for n in F)


def same(model, ewc, expected):
    params = list(model.parameters())
    penalty = ewc.penalty()
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    ours, theirs = (torch.autograd.grad(x, params) for x in (penalty, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_offline_is_one_quadratic_per_task():
    model = net(**DOUBLE)
    terms = []
    ewc = EWC(model, None, 3.0)
    assert ewc.penalty() == 0
    for _ in range(3):
        anchor, fisher = wander(model), some_fisher(model)
        ewc.consolidate(fisher)
        terms.append((fisher, anchor))
        wander(model)
        same(model, ewc, quadratic(model, 3.0, *terms))
    assert ewc.tasks == 3


def test_online_keeps_a_decayed_fisher_and_the_newest_anchor():
    model = net(**DOUBLE)
    wander(model)
    first = some_fisher(model)
    ewc = EWC(model, first, 3.0, mode="online", gamma=0.6)
    anchor, second = wander(model), some_fisher(model)
    ewc.consolidate(second)
    wander(model)
    decayed = {name: 0.6 * first[name] + second[name] for name in first}
    same(model, ewc, quadratic(model, 3.0, (decayed, anchor)))


def test_online_takes_the_newest_anchor_also_where_the_new_task_has_no_fisher():
    model = net(**DOUBLE)
    first = some_fisher(model)
    ewc = EWC(model, first, 2.0, mode="online")
    anchor = wander(model)
    ewc.consolidate({"0.weight": first["0.weight"]})
    wander(model)
    both = {name: F + (first["0.weight"] if name == "0.weight" else 0) for name, F in first.items()}
    same(model, ewc, quadratic(model, 2.0, (both, anchor)))


def test_parameters_without_an_entry_are_not_held():
    model = net(**DOUBLE)
    ewc = EWC(model, {"2.bias": torch.ones(2, **DOUBLE)}, 1.0)
    with torch.no_grad():
        model[0].weight.add_(5.0)
    assert ewc.penalty() == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.clone()
    ewc.apply_grads_(optimizer)
    assert torch.equal(before, model[0].weight)


def test_a_fisher_diagonal_is_a_mapping_like_any_other():
    model = net()
    values = some_fisher(model)
    fisher = FisherDiagonal(values, estimator="exact", likelihood="categorical", units=7)
    one, other = EWC(model, fisher, 2.0), EWC(model, values, 2.0)
    wander(model)
    assert one.penalty() == other.penalty()


def metric_of(optimizer, p):
    """What each optimizer divides by, from its state, as printed."""
    state, group = optimizer.state[p], optimizer.param_groups[0]
    if isinstance(optimizer, FAdafactor) and p.dim() == 2:
        return (torch.outer(state["R"], state["C"]) / state["R"].sum()) ** group["rho"] + group["eps"]
    if isinstance(optimizer, FAdam | FAdafactor):
        return state["f"] ** group["rho"] + group["eps"] ** (2 * group["rho"])
    if isinstance(optimizer, torch.optim.AdamW):
        return (state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())).sqrt() + group["eps"]
    return torch.ones_like(p)


OPTIMIZERS = {
    "FAdam": lambda params: FAdam(params, lr=0.05, backend="eager"),
    "FAdam, rho=1": lambda params: FAdam(params, lr=0.05, rho=1.0, backend="eager"),
    "FAdafactor": lambda params: FAdafactor(params, lr=0.05, min_dim_size_to_factor=2, backend="eager"),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.05),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_the_decoupled_step_is_the_implicit_gradient_step_in_the_metric_of_the_optimizer(build):
    """theta_after = theta_before - eta strength F (theta_after - anchor)/d, and the optimizer's state has not moved."""
    model = net(**DOUBLE)
    anchor, fisher = wander(model), some_fisher(model)
    ewc = EWC(model, fisher, 40.0)
    optimizer = build(model.parameters())
    x = torch.randn(5, 3, **DOUBLE)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict()["state"])
    grads = [p.grad.clone() for p in model.parameters()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ewc.apply_grads_(optimizer)
    for name, p in model.named_parameters():
        explicit = before[name] - 0.05 * 40.0 * fisher[name] * (p - anchor[name]) / metric_of(optimizer, p)
        torch.testing.assert_close(p.detach(), explicit.detach(), rtol=1e-11, atol=1e-13)
        assert ((p - anchor[name]).abs() <= (before[name] - anchor[name]).abs()).all()
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in model.parameters()], grads, rtol=0, atol=0)


def test_fadams_f_sees_the_loss_alone_and_with_penalty_it_does_not():
    """Section 3.4.3: after a decoupled step f is what it is without EWC; a penalty in the loss changes it."""

    def f_of(how, p):
        ewc = EWC(p, {"weight": torch.full_like(p.weight, 50.0)}, 1.0)
        with torch.no_grad():
            p.weight.add_(1.0)
        optimizer = FAdam(p.parameters(), backend="eager", lr=1e-3)
        (p.weight.sum() + (ewc.penalty() if how == "penalty" else 0)).backward()
        optimizer.step()
        if how == "decoupled":
            ewc.apply_grads_(optimizer)
        return optimizer.state[p.weight]["f"]

    layer = nn.Linear(3, 2, bias=False)
    plain, decoupled, penalty = (f_of(how, copy.deepcopy(layer)) for how in ("plain", "decoupled", "penalty"))
    torch.testing.assert_close(decoupled, plain, rtol=0, atol=0)
    assert (penalty > 100 * plain).all()


@pytest.mark.parametrize("strength", [0.1, 1.0, 1e6])
def test_fadam_with_decoupled_steps_settles_where_loss_plus_penalty_is_least(strength):
    """Both are divided by the same d, so the balance is that of their sum: of a quadratic loss a (theta - b)^2/2 in
    theta_i the minimum is (a b + strength F anchor)/(a + strength F)."""
    model = nn.Linear(6, 1, bias=False, **DOUBLE)
    fisher = torch.tensor([[0.0, 0.1, 0.5, 1.0, 2.0, 10.0]], **DOUBLE)
    ewc = EWC(model, {"weight": fisher}, strength)
    anchor = model.weight.detach().clone()
    a, b = torch.linspace(0.5, 2.0, 6, **DOUBLE), anchor + torch.tensor([[1.0, -1.0, 0.5, -0.5, 1.0, -1.0]], **DOUBLE)
    optimizer = FAdam(model.parameters(), lr=0.02, weight_decay=0.0, betas=(0.0, 0.99), clip=None, backend="eager")
    optimizer.register_step_post_hook(lambda optimizer, *_: ewc.apply_grads_(optimizer))
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 1500)
        optimizer.zero_grad()
        (a * (model.weight - b) ** 2 / 2).sum().backward()
        optimizer.step()
    least = (a * b + strength * fisher * anchor) / (a + strength * fisher)
    torch.testing.assert_close(model.weight.detach(), least, rtol=0, atol=5e-3)


def test_what_the_optimizer_has_not_stepped_stays():
    model = net()
    ewc = EWC(model, some_fisher(model), 1.0)
    after = wander(model)
    for optimizer in (FAdam(model.parameters(), backend="eager"), torch.optim.AdamW(model.parameters())):
        ewc.apply_grads_(optimizer)
        assert all(torch.equal(p, after[name]) for name, p in model.named_parameters())


def test_small_state_and_bfloat16_weights_are_pulled_too():
    model = nn.Linear(64, 64, dtype=torch.bfloat16)
    ewc = EWC(model, {"weight": torch.ones(64, 64)}, 1e9)
    anchor = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    optimizer = FAdam(model.parameters(), backend="eager", state_dtype="int8")
    model(torch.ones(2, 64, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    ewc.apply_grads_(optimizer)
    torch.testing.assert_close(model.weight.detach(), anchor)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_saved_ewc_goes_on_as_if_nothing_had_happened(mode):
    model = net(**DOUBLE)
    ewc = EWC(model, some_fisher(model), 3.0, mode=mode)
    wander(model)
    ewc.consolidate(some_fisher(model))
    saved = copy.deepcopy(ewc.state_dict())
    twin = copy.deepcopy(model)
    other = EWC(twin, None, 1.0)
    other.load_state_dict(saved)
    fisher, after = some_fisher(model), wander(model)
    twin.load_state_dict(after)
    for one in (ewc, other):
        one.consolidate(fisher)
    twin.load_state_dict(wander(model))
    assert ewc.penalty() == other.penalty() > 0
    assert other.tasks == 3
    fresh = EWC(twin, None, 1.0)
    fresh.load_state_dict(saved)
    fresh.consolidate(fisher)
    assert fresh.tasks == 3
    assert saved["tasks"] == 2  # what was saved is not touched by going on


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda m: EWC(m, {"x": torch.ones(2)}, 1.0), ValueError, "fisher has 'x', which is no parameter"),
        (lambda m: EWC(m, {"2.bias": torch.ones(3)}, 1.0), ValueError, r"shape \(3,\), the parameter \(2,\)"),
        (lambda m: EWC(m, {"2.bias": torch.tensor([1.0, -1.0])}, 1.0), ValueError, "must be finite and >= 0"),
        (lambda m: EWC(m, {"2.bias": torch.tensor([1.0, math.nan])}, 1.0), ValueError, "must be finite and >= 0"),
        (lambda m: EWC(m, None, -1.0), ValueError, "strength must be a finite number >= 0, got -1.0"),
        (lambda m: EWC(m, None, 1.0, "both"), ValueError, "mode must be 'offline' or 'online', got 'both'"),
        (lambda m: EWC(m, None, 1.0, "online", gamma=1.5), ValueError, r"gamma must be in \[0, 1\], got 1.5"),
        (lambda m: EWC(m, None, 1.0, gamma=0.5), ValueError, "gamma belongs to mode='online', got 0.5"),
        (
            lambda m: EWC(m, some_fisher(m), 1.0).apply_grads_(NaturalAdam(m.parameters())),
            TypeError,
            "does not know how NaturalAdam divides",
        ),
    ],
)
def test_bad_input_is_named(build, error, message):
    with pytest.raises(error, match=message):
        build(net())


def test_a_fisher_that_is_refused_changes_nothing():
    model = net(**DOUBLE)
    ewc = EWC(model, some_fisher(model), 1.0)
    wander(model)
    before = ewc.penalty()
    with pytest.raises(ValueError, match="which is no parameter"):
        ewc.consolidate({**some_fisher(model), "x": torch.ones(1)})
    assert ewc.penalty() == before
    assert ewc.tasks == 1
