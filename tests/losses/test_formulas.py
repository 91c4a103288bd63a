"""The formulas on their own: two-hot, HL-Gauss, symlog, and the tails of the discretized logistic."""

import itertools
import math

import pytest
import torch

from fisheropt.losses import (
    DiscretizedLogisticMixture,
    HLGauss,
    TwoHot,
    discretized_logistic_mixture,
    hl_gauss,
    logit_laplace,
    symexp,
    symlog,
    two_hot,
)

DOUBLE = {"dtype": torch.float64}


def test_two_hot_has_two_weights_whose_mean_is_the_target():
    atoms = torch.tensor([-3.0, -1.0, 0.0, 0.5, 4.0], **DOUBLE)
    y = torch.cat([atoms, torch.linspace(-3, 4, 57, **DOUBLE)])
    weights = two_hot(y, atoms)
    torch.testing.assert_close(weights @ atoms, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(y), rtol=0, atol=1e-12)
    assert (weights >= 0).all()
    assert ((weights > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(weights[:5], torch.eye(5, **DOUBLE), rtol=0, atol=0)  # a target on an atom is one-hot
    used = weights[5:].gt(0).double() @ torch.arange(5, **DOUBLE)
    assert ((weights[5:] > 0).sum(-1) == 1).logical_or(used % 2 == 1).all()  # two neighbours: i + (i + 1) is odd


def test_two_hot_clamps_and_keeps_shapes():
    atoms = torch.tensor([0.0, 1.0, 3.0])
    assert two_hot(torch.tensor([[-5.0, 9.0]]), atoms).tolist() == [[[1, 0, 0], [0, 0, 1]]]
    assert two_hot(torch.tensor(2.0), atoms).tolist() == [0, 0.5, 0.5]


def test_hl_gauss_is_the_mass_of_a_normal_distribution_in_each_bin():
    """Against the integral of the normal density, by Simpson's rule."""
    edges, y, sigma = torch.linspace(-1, 2, 7, **DOUBLE), 0.4, 0.3
    points = [torch.linspace(a, b, 101, **DOUBLE) for a, b in itertools.pairwise(edges)]
    rule = torch.ones(101, **DOUBLE)
    rule[1:-1:2], rule[2:-1:2] = 4, 2
    masses = torch.stack([(torch.exp(-0.5 * ((x - y) / sigma) ** 2) * rule).sum() for x in points])
    weights = hl_gauss(torch.tensor(y, **DOUBLE), edges, sigma)
    torch.testing.assert_close(weights, masses / masses.sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("y", [-1e9, -1.0, 0.35, 2.0, 1e9])
def test_hl_gauss_of_a_target_beyond_the_bins_is_that_of_the_nearest_edge(y):
    weights = hl_gauss(torch.tensor(y), torch.linspace(-1, 2, 31), 0.05)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert weights.argmax() == min(29, max(0, int((min(2, max(-1, y)) + 1) * 10)))


@pytest.mark.parametrize("likelihood", [TwoHot(-3.0, 3.0), HLGauss(-3.0, 3.0)], ids=["two-hot", "hl-gauss"])
def test_a_fit_of_soft_targets_has_no_gradient_and_decodes_to_the_target(likelihood):
    """What soft targets do to the empirical Fisher information: zero, where the exact one is not."""
    y = torch.linspace(-2, 2, 9, **DOUBLE)
    params = likelihood.probabilities(y).clamp(min=1e-300).log().requires_grad_()
    torch.testing.assert_close(likelihood.decode(params), y, rtol=0, atol=2e-6)
    (gradient,) = torch.autograd.grad(likelihood.nll(params, y).sum(), params)
    assert gradient.abs().max() < 1e-12
    p = torch.softmax(params, -1)
    exact_fisher = (p * (1 - p)).sum(-1)  # the trace of diag(p) - p p'
    inside = y.abs() > 1e-9 if isinstance(likelihood, HLGauss) else (y / 0.12).remainder(1).sub(0.5).abs() < 0.49
    assert (exact_fisher[inside] > 0.01).all()


def test_symexp_undoes_symlog_and_both_have_slope_one_at_zero():
    x = torch.tensor([-1e30, -7.0, -1e-12, 0.0, 1e-12, 7.0, 1e30], **DOUBLE)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-12, atol=0)
    torch.testing.assert_close(symlog(x), torch.sign(x) * torch.log1p(x.abs()), rtol=1e-15, atol=0)
    for function in (symlog, symexp):
        zero = torch.zeros(2, requires_grad=True)
        function(zero).sum().backward()
        assert zero.grad.tolist() == [1, 1]


def test_logit_laplace_by_hand():
    """x = 1/2 is y = 1/2, whose logit is 0: the density is (1 - 2 eps) exp(-|mu|/b)/(2 b/4)."""
    mu, b = 0.7, 0.2
    nll = logit_laplace(torch.tensor(0.5, **DOUBLE), torch.tensor(mu, **DOUBLE), torch.tensor(b, **DOUBLE).log(), 0.1)
    assert math.isclose(math.exp(-nll.item()), 0.8 * math.exp(-mu / b) / (b / 2), rel_tol=1e-12)


def one_logistic(value, mu, scale, bins=256):
    x = {"dtype": torch.float64}
    return discretized_logistic_mixture(
        torch.tensor([value]),
        torch.zeros(1, **x),
        torch.full((1, 1), mu, **x),
        torch.full((1, 1), scale, **x).log(),
        bins,
    ).item()


@pytest.mark.parametrize("value", [0, 1, 100, 254, 255])
@pytest.mark.parametrize("mu", [-1.3, 0.1, 0.9])
@pytest.mark.parametrize("scale", [0.01, 0.3, 4.0])
def test_a_bin_of_the_logistic_is_a_difference_of_its_distribution_function(value, mu, scale):
    def below(v):
        return 1 / (1 + math.exp(-((2 * v - 1) / 255 - 1 - mu) / scale))

    lower = 0.0 if value == 0 else below(value)
    upper = 1.0 if value == 255 else below(value + 1)
    if upper - lower > 1e-8:  # else the difference is what the formula under test avoids
        assert math.isclose(one_logistic(value, mu, scale), -math.log(upper - lower), rel_tol=1e-6, abs_tol=1e-9)


def test_far_from_the_mean_the_logistic_is_an_exponential():
    """There sigmoid(z) is exp(z), and a plain difference of two of them is 0 in float64."""
    scale, mu, value = 1e-3, 0.9, 20
    a, b = ((2 * value + end) / 255 - 1 - mu for end in (1, -1))
    expected = -(a / scale + math.log1p(-math.exp((b - a) / scale)))
    assert math.isclose(one_logistic(value, mu, scale), expected, rel_tol=1e-9)


def test_a_very_wide_logistic_gives_inner_values_its_density_times_the_width():
    scale = 1e12
    assert math.isclose(one_logistic(100, 0.0, scale), -math.log(2 / 255 / (4 * scale)), rel_tol=1e-9)
    assert math.isclose(one_logistic(0, 0.0, scale), math.log(2), rel_tol=1e-9)


def test_channels_are_coupled_in_the_papers_order():
    """Of three channels: mu_1 = m_1 + c_10 x_0, mu_2 = m_2 + c_20 x_0 + c_21 x_1."""
    likelihood = DiscretizedLogisticMixture(1, channels=3)
    m, log_s, c = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0.5, -0.4, 0.8])
    value = torch.tensor([30, 200, 90])
    x = value * 2 / 255 - 1
    t = torch.tanh(c)
    mu = torch.stack([m[0], m[1] + t[0] * x[0], m[2] + t[1] * x[0] + t[2] * x[1]])
    expected = sum(one_logistic(int(v), a.item(), s.exp().item()) for v, a, s in zip(value, mu, log_s, strict=True))
    params = torch.cat([torch.zeros(1), m, log_s, c]).double()
    assert math.isclose(likelihood.nll(params, value).item(), expected, rel_tol=1e-6)
