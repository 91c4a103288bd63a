"""Signal and noise: unbiased by enumeration, and against gradients of single examples in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from fisheropt.fisher import noise_split

DOUBLE = {"dtype": torch.float64}


class Product(nn.Module):
    """The gradient of the mean of its outputs is the mean of its inputs."""

    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, **DOUBLE))

    def forward(self, x):
        return x @ self.w


def mean_output(outputs, targets):
    return outputs.mean()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (2, 1, 1)])
def test_the_mean_over_everything_that_can_be_drawn_is_the_truth(sizes):
    """All 81 draws of four units from a population of three, cut into batches: no bias, exactly."""
    population = torch.tensor([[1.0, -1.0], [2.0, 0.5], [-0.5, 3.0]], **DOUBLE)
    mean_square, variance, draws = 0, 0, 0
    for drawn in itertools.product(range(3), repeat=4):
        units = torch.split(population[list(drawn)], sizes)
        found = noise_split(Product(2), [(x, torch.zeros(len(x))) for x in units], mean_output)
        mean_square, variance, draws = mean_square + found.mean_square["w"], variance + found.variance["w"], draws + 1
        assert (found.units, found.batches) == (4, len(sizes))
    truth = population.numpy()
    np.testing.assert_allclose(mean_square / draws, truth.mean(0) ** 2, rtol=1e-12)
    np.testing.assert_allclose(variance / draws, truth.var(0), rtol=1e-12)


def test_of_single_examples_it_is_their_sample_variance():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(12, 4, **DOUBLE), torch.randint(3, (12,))
    found = noise_split(model, zip(x.split(1), y.split(1), strict=True), cross_entropy)
    params = dict(model.named_parameters())

    def loss(p, x, y):
        return cross_entropy(torch.func.functional_call(model, p, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, x, y)
    trace, signal = 0.0, 0.0
    for name, g in each.items():
        g = g.detach().numpy()
        variance = g.var(0, ddof=1)
        np.testing.assert_allclose(found.variance[name], variance, rtol=1e-10, atol=1e-18)
        np.testing.assert_allclose(found.mean_square[name], g.mean(0) ** 2 - variance / 12, rtol=1e-8, atol=1e-16)
        trace, signal = trace + variance.sum(), signal + (g.mean(0) ** 2 - variance / 12).sum()
        assert found.layers[name].entries == g[0].size
    total = found.total
    assert (total.variance, total.mean_square) == pytest.approx((trace, signal), rel=1e-10)
    assert total.critical_batch == (pytest.approx(trace / signal) if signal > 0 else math.inf)
    assert all(p.grad is None for p in model.parameters())


def test_the_critical_batch_is_where_both_halves_of_f_are_equal():
    """A signal of 1 and a variance of 4: B_simple is 4, and E[f] there is half noise."""
    rng = np.random.default_rng(0)
    x = torch.tensor(1 + 2 * rng.normal(size=(4000, 1)))
    found = noise_split(Product(1), [(part, part) for part in x.split(10)], mean_output)
    assert found.total.critical_batch == pytest.approx(4, rel=0.15)
    assert found.noise_share(4) == pytest.approx(0.5, abs=0.04)
    assert found.total.signal_to_noise == pytest.approx(1 / found.total.critical_batch)


def test_noise_that_hides_the_signal_has_no_critical_batch():
    x = torch.tensor([[1.0], [-1.0]], **DOUBLE)
    found = noise_split(Product(1), [(part, part) for part in x.split(1)], mean_output)
    assert found.total.mean_square == -1.0  # gbar is 0, s2 is 2, N is 2
    assert found.total.critical_batch == math.inf


def test_one_batch_tells_nothing():
    with pytest.raises(ValueError, match="at least two batches to tell noise from signal, got 1"):
        noise_split(nn.Linear(1, 1), [(torch.ones(3, 1), torch.ones(3, 1))], mse_loss)
