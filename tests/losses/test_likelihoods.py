"""What every likelihood promises, one table for all: total mass, gradients, draws, decoding, extremes, precision."""

import math

import pytest
import torch

from fisheropt.losses import (
    DiscretizedLogisticMixture,
    HLGauss,
    LogitLaplace,
    PixelCategorical,
    TwoHot,
    symlog,
)

DOUBLE = {"dtype": torch.float64}
LIKELIHOODS = {
    "pixels": PixelCategorical(bins=7),
    "two-hot": TwoHot(-2.0, 3.0, bins=11),
    "two-hot, symlog": TwoHot(-50.0, 900.0, bins=11, spacing="symlog"),
    "hl-gauss": HLGauss(-2.0, 3.0, bins=11),
    "logit-laplace": LogitLaplace(),
    "logistics": DiscretizedLogisticMixture(3, bins=9),
    "logistics, 256 values": DiscretizedLogisticMixture(2),
    "logistics, 3 channels": DiscretizedLogisticMixture(2, channels=3, bins=4),
}
EVERY = pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=list(LIKELIHOODS))


def outcomes(likelihood):
    """Every outcome of a discrete likelihood, (N,) or (N, C)."""
    if isinstance(likelihood, TwoHot | HLGauss):
        return likelihood.positions(torch.zeros(1, **DOUBLE))
    channels = getattr(likelihood, "channels", None)
    values = torch.arange(likelihood.bins)
    return values if channels is None else torch.cartesian_prod(*[values] * channels)


def probabilities(likelihood, params):
    """Of every outcome under one vector of params. Those with soft targets are softmaxes by definition."""
    everything = outcomes(likelihood)
    if likelihood.soft_targets:
        return torch.softmax(params, -1)
    return torch.exp(-likelihood.nll(params.expand(len(everything), -1), everything))


def some_params(likelihood, *shape, scale=1.5, **options):
    return scale * torch.randn(*shape, likelihood.num_parameters, **options)


def targets(likelihood, params):
    drawn = likelihood.sample(params)
    return drawn.clamp(0, 1) if isinstance(likelihood, LogitLaplace) else drawn


DISCRETE = {name: likelihood for name, likelihood in LIKELIHOODS.items() if likelihood.discrete}


@pytest.mark.parametrize("likelihood", DISCRETE.values(), ids=list(DISCRETE))
def test_the_probabilities_of_all_outcomes_sum_to_one(likelihood):
    for scale in (0.1, 1.5, 6.0):
        total = probabilities(likelihood, some_params(likelihood, scale=scale, **DOUBLE)).sum()
        assert abs(total.item() - 1) < 1e-12


@pytest.mark.parametrize(("mu", "b"), [(0.3, 0.05), (-1.0, 0.5), (2.0, 1.5), (-20.0, 0.2)])
def test_the_density_of_a_pixel_integrates_to_one(mu, b):
    """The midpoint rule on the logit, on either side of its kink; what is beyond float64 next to 0 and 1 is known."""
    likelihood, end = LogitLaplace(eps=0.1), 27.0
    total = 0.5 * math.exp((-end - mu) / b) + 0.5 * math.exp((-end + mu) / b)  # P(|logit| > end), -end < mu < end
    for low, high in ((-end, mu), (mu, end)):
        width = (high - low) / 200_000
        y = torch.sigmoid(low + width * (torch.arange(200_000, **DOUBLE) + 0.5))
        x, dx = (y - 0.1) / 0.8, y * (1 - y) / 0.8 * width
        params = torch.tensor([mu, math.log(b)], **DOUBLE).expand(len(x), 2)
        total += (torch.exp(-likelihood.nll(params, x)) * dx).sum().item()
    assert abs(total - 1) < 2e-6


@EVERY
def test_gradients_are_those_of_finite_differences(likelihood):
    params = some_params(likelihood, 4, **DOUBLE).requires_grad_()
    target = targets(likelihood, params.detach())
    assert torch.autograd.gradcheck(lambda p: likelihood.nll(p, target), (params,))
    assert torch.autograd.gradcheck(likelihood.decode, (params,))


@EVERY
def test_outcomes_are_drawn_as_often_as_their_probabilities_say(likelihood):
    """Each frequency within 4.5 standard deviations, of N draws fixed by the seed."""
    generator, n = torch.Generator().manual_seed(3), 40_000
    params = some_params(likelihood, scale=0.7, **DOUBLE)
    drawn = likelihood.sample(params.expand(n, -1), generator)
    if likelihood.discrete:
        p = probabilities(likelihood, params)
        every = outcomes(likelihood)
        same = (drawn.unsqueeze(1) == every.unsqueeze(0)).reshape(n, len(every), -1).all(-1)
        frequency = same.double().mean(0)
        assert same.sum() == n  # nothing else was drawn
    else:
        logit = torch.logit(drawn * (1 - 2 * likelihood.eps) + likelihood.eps)
        ends = params[0] + params[1].exp() * torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.5, 2.0], **DOUBLE)
        t = (ends - params[0]) / params[1].exp()
        p = torch.where(t < 0, 0.5 * torch.exp(t), 1 - 0.5 * torch.exp(-t))
        frequency = (logit.unsqueeze(1) < ends).double().mean(0)
    sd = (p * (1 - p) / n).sqrt().clamp(min=1e-3 / n)
    enough = n * p > 5  # a normal distribution describes these
    assert ((frequency - p).abs() / sd)[enough].max() < 4.5
    assert (frequency[~enough] * n < 30).all()


@EVERY
def test_draws_follow_the_generator_and_nothing_else(likelihood):
    params = some_params(likelihood, 50)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (likelihood.sample(params, torch.Generator().manual_seed(11)) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())


@EVERY
def test_decode_is_the_mean_or_says_median(likelihood):
    params = some_params(likelihood, **DOUBLE)
    if likelihood.point == "median":
        x = likelihood.decode(torch.tensor([0.3, -1.0], **DOUBLE))
        assert math.isclose(torch.logit(x * 0.8 + 0.1).item(), 0.3, rel_tol=1e-12)
        return
    mean = probabilities(likelihood, params) @ outcomes(likelihood).to(torch.float64)
    decoded = likelihood.decode(params)
    if getattr(likelihood, "channels", None):  # exact for the first channel, and close where few values are cut off
        torch.testing.assert_close(decoded[0], mean[0], rtol=1e-10, atol=1e-10)
    else:
        torch.testing.assert_close(decoded, mean, rtol=1e-10, atol=1e-10)


def test_several_channels_decode_to_the_mean_where_nothing_is_cut_off():
    likelihood = DiscretizedLogisticMixture(2, channels=3, bins=32)
    params = 0.1 * torch.randn(likelihood.num_parameters, **DOUBLE)
    params[8:14] = -3.5  # narrow components, far from the ends
    every = torch.cartesian_prod(*[torch.arange(32)] * 3)
    p = torch.exp(-likelihood.nll(params.expand(len(every), -1), every))
    assert abs(p.sum().item() - 1) < 1e-10
    torch.testing.assert_close(likelihood.decode(params), p @ every.double(), rtol=0, atol=2e-3)


@EVERY
@pytest.mark.parametrize("size", [1e3, 1e6, 1e12])
def test_extreme_params_give_finite_losses_and_gradients(likelihood, size):
    signs = torch.tensor([-1.0, 0.0, 1.0])
    params = (size * signs[torch.randint(3, (64, likelihood.num_parameters))]).requires_grad_()
    target = targets(likelihood, some_params(likelihood, 64))
    losses = likelihood.nll(params, target)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert params.grad.isfinite().all()
    assert likelihood.decode(params).isfinite().all()
    assert likelihood.sample(params).isfinite().all()


@EVERY
def test_bfloat16_params_are_computed_with_in_float32(likelihood):
    params = some_params(likelihood, 20).bfloat16()
    target = targets(likelihood, params)
    losses = likelihood.nll(params, target)
    assert losses.dtype == likelihood.decode(params).dtype == torch.float32
    torch.testing.assert_close(losses, likelihood.nll(params.float(), target), rtol=0, atol=0)


@EVERY
def test_bits_per_dim_are_nats_over_log_two_and_the_numbers_of_a_target(likelihood):
    params = some_params(likelihood, 5, 4)
    target = targets(likelihood, params)
    expected = likelihood.nll(params, target).double().sum() / math.log(2) / target.numel()
    assert math.isclose(likelihood.bits_per_dim(params, target).item(), expected.item(), rel_tol=1e-5)


@EVERY
def test_shapes_that_do_not_fit_are_named(likelihood):
    n = likelihood.num_parameters
    with pytest.raises(ValueError, match=rf"params of shape \(\.\.\., {n}\), got \(2, {n + 1}\)"):
        likelihood.nll(torch.zeros(2, n + 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"target of shape .* got \(5, 5\)"):
        likelihood.nll(torch.zeros(2, n), torch.zeros(5, 5))


def test_a_uniform_model_needs_the_bits_of_a_uniform_code():
    bits = PixelCategorical(bins=7).bits_per_dim(torch.zeros(6, 7), torch.randint(7, (6,)))
    assert math.isclose(bits.item(), math.log2(7), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PixelCategorical(bins=1), "bins must be >= 2, got 1"),
        (lambda: TwoHot(1.0, 1.0), "low < high, got 1.0 and 1.0"),
        (lambda: TwoHot(0.0, math.inf), "must be finite"),
        (lambda: TwoHot(0.0, 1.0, spacing="log"), "spacing must be 'linear' or 'symlog', got 'log'"),
        (lambda: HLGauss(0.0, 1.0, sigma_in_bins=0.0), "sigma_in_bins must be a finite number > 0, got 0.0"),
        (lambda: LogitLaplace(eps=0.5), r"eps must be in \(0, 1/2\), got 0.5"),
        (lambda: LogitLaplace(min_log_scale=1.0), r"min_log_scale must be in \[-30, 0\], got 1.0"),
        (lambda: DiscretizedLogisticMixture(0), "components must be >= 1, got 0"),
        (lambda: DiscretizedLogisticMixture(channels=0), "channels must be None or >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_symlog_spacing_is_even_after_symlog():
    atoms = LIKELIHOODS["two-hot, symlog"].positions(torch.zeros(1, **DOUBLE))
    steps = symlog(atoms).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-9, atol=1e-12)
