"""staleness and diagnose: numbers against plain autograd, and nothing left behind."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import fisheropt
from fisheropt import FAdam
from fisheropt.fisher import compare_fisher, fisher_diag


def problem(steps, lr, optimizer=FAdam):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(torch.randn(6, 5).double(), torch.randint(3, (6,))) for _ in range(5)]
    trained = optimizer(model.parameters(), lr=lr)
    for t in range(steps):
        trained.zero_grad()
        x, y = data[t % 5]
        cross_entropy(model(x), y).backward()
        trained.step()
    return model, trained, data


def squares(model, batches):
    total = {name: 0 for name, _ in model.named_parameters()}
    for x, y in batches:
        gradients = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        total = {name: total[name] + g.square() / len(batches) for name, g in zip(total, gradients, strict=True)}
    return total


def test_staleness_by_hand():
    model, optimizer, data = problem(7, 0.1)
    found = fisheropt.staleness(optimizer, model, data, cross_entropy)
    held = {name: optimizer.state[p]["f"] for name, p in model.named_parameters()}
    assert found.held_and_fresh.total == pytest.approx(compare_fisher(held, squares(model, data)).total)
    halves = squares(model, data[::2]), squares(model, data[1::2])
    assert found.fresh_halves.total == pytest.approx(compare_fisher(*halves).total)
    assert found.half_life == pytest.approx(math.log(0.5) / math.log(0.999))
    assert (found.steps, found.batches) == (7, 5)


def test_an_optimizer_that_does_not_move_is_never_out_of_date():
    model, optimizer, data = problem(50, 0.0)
    found = fisheropt.staleness(optimizer, model, data, cross_entropy).held_and_fresh.total
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.trace_ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("optimizer", [FAdam, torch.optim.AdamW])
def test_a_diagnosis_says_what_its_parts_say_and_changes_nothing(optimizer):
    model, trained, data = problem(7, 0.01, optimizer)
    before = copy.deepcopy((model.state_dict(), trained.state_dict()))
    gradients = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    found = fisheropt.diagnose(model, trained, data, cross_entropy)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(trained.state_dict()["state"], before[1]["state"], rtol=0, atol=0)
    assert trained.state_dict()["param_groups"] == before[1]["param_groups"]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))

    key = "f" if optimizer is FAdam else "exp_avg_sq"
    correction = 1 if optimizer is FAdam else 1 - 0.999**7
    held = {name: 6 * trained.state[p][key] / correction for name, p in model.named_parameters()}
    exact, empirical = (fisher_diag(model, data, estimator=kind) for kind in ("exact", "empirical"))
    assert found.held_and_fisher.total == pytest.approx(compare_fisher(held, exact).total)
    assert found.held_and_empirical.total == pytest.approx(compare_fisher(held, empirical).total)
    assert found.empirical_and_fisher.total == pytest.approx(compare_fisher(empirical, exact).total)
    assert (found.batch_size, found.labels, found.likelihood.kind) == (6, 1, "discrete")
    assert set(found.steps) == set(dict(model.named_parameters()))

    x, y = data[0]
    weight = model[0].weight.detach().clone()
    trained.zero_grad()
    cross_entropy(model(x), y).backward()
    trained.step()
    change = (model[0].weight - weight).square().mean().sqrt().item()
    assert found.steps["0.weight"].update_rms == pytest.approx(change, rel=1e-6)
    text = str(found)
    assert len(text.splitlines()) == 3 + 5 + len(found.findings)
    assert "nan" not in text


class Sequences(nn.Module):
    """Three labels per example."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x):
        return self.layer(x)


def test_labels_of_an_example_are_summed():
    """With one example per batch and an optimizer that stands still, T^2 f is the empirical Fisher information."""
    model = Sequences().double()
    data = [(torch.randn(1, 3, 2).double(), torch.randint(4, (1, 3))) for _ in range(4)]

    def loss(z, y):
        return cross_entropy(z.flatten(0, 1), y.flatten())

    optimizer = FAdam(model.parameters(), lr=0.0, betas=(0.9, 0.999999))
    for x, y in data:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    found = fisheropt.diagnose(model, optimizer, data, loss)
    assert (found.batch_size, found.labels) == (1, 3)
    assert found.held_and_empirical.total.trace_ratio == pytest.approx(1, abs=1e-5)
    assert found.held_and_empirical.total.cosine == pytest.approx(1, abs=1e-9)


def test_masked_labels_do_not_count():
    """T is what the loss is a mean over: two of three labels here, the third one masked."""
    model = Sequences().double()
    data = [(torch.randn(1, 3, 2).double(), torch.tensor([[1, 3, -100]])) for _ in range(4)]

    def loss(z, y):
        return cross_entropy(z.flatten(0, 1), y.flatten())

    optimizer = FAdam(model.parameters(), lr=0.0, betas=(0.9, 0.999999))
    for x, y in data:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    found = fisheropt.diagnose(model, optimizer, data, loss)
    assert found.labels == 2
    assert found.held_and_empirical.total.trace_ratio == pytest.approx(1, abs=1e-5)
    assert found.likelihood.covered


def test_bad_input():
    model, optimizer, data = problem(1, 0.1)
    with pytest.raises(ValueError, match=r"at least two batches of one size, got 1 of sizes \[6\]"):
        fisheropt.diagnose(model, optimizer, data[:1], cross_entropy)
    with pytest.raises(ValueError, match="two batches for its control, got 1"):
        fisheropt.staleness(optimizer, model, data[:1], cross_entropy)
    for other in (FAdam(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)):
        with pytest.raises(ValueError, match="holds no average of squared gradients"):
            fisheropt.staleness(other, model, data, mse_loss)
