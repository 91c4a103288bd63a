"""The dense matrix, products with it, the natural gradient, the KL divergence: against the oracle and one another."""

import itertools

import pytest
import torch
from tests.fisher import dense
from tests.fisher.zoo import CLASSES, N, animal, vectors
from torch import nn
from torch.nn import functional

from fisheropt.fisher import FisherProduct, fisher_diag, fisher_matrix, kl_check, natural_gradient

TIGHT = {"rtol": 1e-10, "atol": 1e-14}


def oracle(model, x, y, **how):
    return sum(dense.matrices(model, a, b, **how)[0] for a, b in zip(x, y, strict=True)) / N


def soft_labels(y):
    return functional.one_hot(y, CLASSES).double()


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def direction(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator).double() for n, p in model.named_parameters()}


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "attention", "called twice"])
def test_the_matrix_is_the_oracles_and_its_diagonal_the_estimates(name, estimator):
    model, x, y = animal(name)
    found = fisher_matrix(model, [(x[:2], y[:2]), (x[2:], y[2:])], estimator=estimator)
    torch.testing.assert_close(found, oracle(model, x, y, estimator=estimator), **TIGHT)
    diagonal = fisher_diag(model, [(x, y)], estimator=estimator)
    torch.testing.assert_close(found.diagonal(), flat(diagonal), **TIGHT)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("name", ["mlp", "attention", "tied by a function"])
def test_a_product_is_that_with_the_matrix(name, likelihood):
    """Labels that do not count and per-token units included."""
    model, x, y = animal(name)
    if likelihood == "categorical":
        y = y.clone()
        y.view(-1)[1] = -100
    elif name == "tied by a function":
        y = functional.one_hot(y, 7).double()
    else:
        y = soft_labels(y)
    for unit in ("example", "token"):
        how = {"likelihood": likelihood, "unit": unit}
        F = fisher_matrix(model, [(x, y)], **how)
        product = FisherProduct(model, [(x[:3], y[:3]), (x[3:], y[3:])], **how)
        v = direction(model)
        torch.testing.assert_close(flat(product(v)), F @ flat(v), rtol=1e-9, atol=1e-12)
        assert product.quadratic(v) == pytest.approx(float(flat(v) @ F @ flat(v)), rel=1e-10)


def test_both_solvers_solve():
    model, x, y = animal("attention")
    loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    named = dict(model.named_parameters())
    grad = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    F = oracle(model, x, y)
    expected = torch.linalg.solve(F + 0.05 * torch.eye(len(F)).double(), flat(grad))
    for solver, close in (("dense", TIGHT), ("cg", {"rtol": 1e-7, "atol": 1e-9})):
        found = natural_gradient(model, [(x, y)], grad, 0.05, solver=solver, tolerance=1e-10)
        assert {n: t.shape for n, t in found.items()} == {n: p.shape for n, p in named.items()}
        torch.testing.assert_close(flat(found), expected, **close)
    assert all(p.grad is None for p in model.parameters())
    with pytest.warns(RuntimeWarning, match="ended after 2 iterations with a relative residual"):
        natural_gradient(model, [(x, y)], grad, 0.05, max_iterations=2)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_the_kl_divergence_is_the_quadratic_form_ten_times_better_for_a_tenth_of_the_step(name, likelihood):
    model, x, y = animal(name)
    y = y if likelihood == "categorical" else soft_labels(y)
    found = kl_check(model, [(x, y)], likelihood=likelihood, lengths=(1e-1, 1e-2, 1e-3))
    errors = [abs(ratio - 1) for ratio in found.ratios]
    assert errors[0] < 0.2
    for longer, shorter in itertools.pairwise(errors):
        assert 8 < longer / shorter < 12.5
    v = {n: t * (0.01 / float(flat(direction(model)).norm())) for n, t in direction(model).items()}
    quadratic = float(flat(v) @ fisher_matrix(model, [(x, y)], likelihood=likelihood) @ flat(v)) / 2
    again = kl_check(model, [(x, y)], likelihood=likelihood, direction=v, lengths=(0.01,))
    assert again.quadratic[0] == pytest.approx(quadratic, rel=1e-9)
    assert str(found).count("\n") == 3


def test_the_kl_divergence_by_hand():
    """Of gaussians with variance 1: half the squared distance of the means."""
    model, x, y = animal("mlp")
    v = direction(model)
    product = FisherProduct(model, [(x, soft_labels(y))], likelihood="gaussian")
    z = model(x).detach()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += v[name]
    expected = float((model(x).detach() - z).square().sum() / 2 / N)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p -= v[name]
    assert product.kl(v) == pytest.approx(expected, rel=1e-10)


def test_what_makes_no_sense_is_refused():
    model, x, y = animal("mlp")
    data = [(x, y)]
    grad = direction(model)
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="damping must be a finite number > 0"):
            natural_gradient(model, data, grad, damping)
    with pytest.raises(ValueError, match="solver must be 'cg' or 'dense', got 'lu'"):
        natural_gradient(model, data, grad, 1.0, solver="lu")
    with pytest.raises(ValueError, match=r"grad must have '0\.weight' in shape \(6, 4\), got None"):
        natural_gradient(model, data, {}, 1.0)
    with pytest.raises(ValueError, match="products with the Fisher information must know the distribution"):
        FisherProduct(model, data, likelihood=lambda z, y: z)
    with pytest.raises(ValueError, match="lengths must be positive"):
        kl_check(model, data, lengths=(0.1, 0.0))
    with pytest.raises(ValueError, match="direction is zero"):
        kl_check(model, data, direction={n: 0 * t for n, t in grad.items()})
    with pytest.raises(ValueError, match="direction must have every trainable parameter"):
        kl_check(model, data, direction={"0.weight": grad["0.weight"]})
    with pytest.raises(ValueError, match=r"25272 x 25272 numbers is too large"):
        fisher_matrix(nn.Sequential(nn.Linear(4, 156), nn.Linear(156, 156)), [(vectors(4), y)])
    with pytest.raises(ValueError, match="no label that counts"):
        fisher_matrix(model, [(x, y * 0 - 100)])
