import math

import pytest
import torch
from torch import nn

from fisheropt_lab.tasks.image.metrics import RandomConvNet, frechet_distance, similarity
from fisheropt_lab.tasks.image.pixel_losses import LOSSES, bits_of_logit_laplace

VALUES = torch.randint(256, (2, 4, 4, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_falls_towards_the_image_and_is_decoded_to_it(name):
    loss = LOSSES[name]
    torch.manual_seed(0)
    output = torch.randn(2, 4, 4, 3, loss.numbers).mul_(0.01).requires_grad_()
    optimizer = torch.optim.Adam([output], lr=0.1)
    first = None
    for _ in range(150):
        value = loss.mean(lambda x: x, output.flatten(-2), VALUES)
        first = value.item() if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < first
    decoded = loss.decode(output.detach())
    assert decoded.shape == VALUES.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert (decoded - VALUES / 255).abs().mean() < 0.02


def test_the_mean_of_a_loss_written_out():
    logits = torch.randn(2, 4, 4, 3, 256, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.cross_entropy(logits.flatten(0, -2), VALUES.flatten())
    ce = LOSSES["ce"]
    torch.testing.assert_close(ce.mean(lambda x: x, logits.flatten(-2), VALUES), expected)
    torch.testing.assert_close(ce.bits(logits, VALUES).mean(), expected / math.log(2))
    mean = (logits.softmax(-1) * torch.arange(256.0)).sum(-1) / 255
    torch.testing.assert_close(ce.decode(logits), mean)

    mu, log_b = torch.randn(2, 2, 4, 4, 3, generator=torch.Generator().manual_seed(2))
    x = VALUES / 255
    y = 0.8 * x + 0.1
    laplace = (y.logit() - mu).abs() / log_b.exp() + log_b + math.log(2) + (y * (1 - y)).log() - math.log(0.8)
    squared = ((mu.sigmoid() - 0.1) / 0.8 - x).square()
    both = LOSSES["l2+logit-laplace"].mean(lambda x: x, torch.stack((mu, log_b), -1).flatten(-2), VALUES)
    torch.testing.assert_close(both, squared.mean() + 0.1 * laplace.mean())


@pytest.mark.parametrize(("mu", "log_b"), [(0.0, 0.0), (-2.5, -3.0), (1.7, -6.5), (2.19, 1.0), (-40.0, -2.0)])
def test_the_probabilities_of_all_values_under_a_logit_laplace_density_sum_to_one(mu, log_b):
    params = torch.tensor([mu, log_b], dtype=torch.float64).expand(256, 2)
    bits = bits_of_logit_laplace(params, torch.arange(256))
    assert bits.isfinite().all()
    assert (2**-bits).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_a_code_length_is_that_of_the_integrated_density():
    """Between the ends: the integral of exp(-nll) over the grey level, by the midpoint rule."""
    params = torch.tensor([0.3, -1.0], dtype=torch.float64)
    for value in (1, 100, 160, 254):
        x = (value - 0.5 + (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000) / 255
        y = 0.8 * x + 0.1
        b = math.exp(-1)
        density = 0.8 * torch.exp(-(y.logit() - 0.3).abs() / b) / (2 * b * y * (1 - y))
        length = -math.log2(float(density.mean()) / 255)
        assert bits_of_logit_laplace(params, torch.tensor(value)).item() == pytest.approx(length, rel=1e-7)


class AsTheyAre(nn.Module):
    num_features = 3

    def forward(self, x):
        return x.flatten(1)


def test_the_frechet_distance_of_two_normal_distributions():
    """Of distributions whose covariances commute: |m - n|^2 + sum of (s - t)^2 of the standard deviations along the
    common axes. A population of 2 k points m +- c s_i u_i has exactly such a mean and covariance."""
    k = 3
    axes, _ = torch.linalg.qr(torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    unbiased = math.sqrt((2 * k - 1) / 2)

    def population(mean, deviations):
        offsets = torch.cat((axes * deviations[:, None], -axes * deviations[:, None])) * unbiased
        return (mean + offsets).reshape(-1, 1, 1, k)

    m, n = torch.tensor([[0.1, -0.4, 2.0], [0.3, 0.0, 1.5]], dtype=torch.float64)
    s, t = torch.tensor([[1.0, 0.5, 2.0], [0.25, 0.75, 1.0]], dtype=torch.float64)
    expected = float((m - n).square().sum() + (s - t).square().sum())
    assert frechet_distance(AsTheyAre(), population(m, s), population(n, t)) == pytest.approx(expected, rel=1e-9)


def test_the_random_extractor_is_frozen_and_always_the_same():
    torch.manual_seed(1)
    first = RandomConvNet()
    torch.manual_seed(2)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(images), RandomConvNet()(images))
    assert first(images).shape == (8, first.num_features)
    assert not any(p.requires_grad for p in first.parameters())
    assert first(images).std(0).min() >= 0
    assert (first(images).std(0) > 0).sum() > 40, "features that tell pictures apart"


def test_similarity():
    real = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    made = real.clone()
    made[0] += 0.1
    made[1] += 0.01
    found = similarity(real, made)
    assert found["L2"] == pytest.approx((0.01 + 0.0001) / 2, rel=1e-4)
    assert found["PSNR"] == pytest.approx((20 + 40) / 2, rel=1e-4), "a mean over pictures"
    assert 0 < found["SSIM"] < 1
