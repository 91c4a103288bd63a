import copy

import pytest
import torch
from torch import nn

from fisheropt_lab.models.codebook import COMMITMENT, PATIENCE, Codebook, perplexity

V, d = 11, 3


@pytest.fixture
def codebook():
    torch.manual_seed(0)
    return Codebook(V, d, seed=5).double()


def unit(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, d, dtype=torch.float64, generator=generator), dim=-1)


def test_the_nearest_code_is_the_one_brute_force_finds(codebook):
    with torch.no_grad():
        codebook.weight.mul_(torch.linspace(0.1, 7.0, V, dtype=torch.float64)[:, None])  # lengths must not matter
    latents = unit(2, 9)
    for z, found in zip(latents.flatten(0, 1), codebook.nearest(latents).flatten().tolist(), strict=True):
        squares = [float((z - e / e.norm()).square().sum()) for e in codebook.weight.detach()]
        assert found == min(range(V), key=squares.__getitem__)


def test_the_straight_through_gradient_is_that_of_the_surrogate(codebook):
    """With what is stopped held where it was, the outputs are plain functions of latents and codes."""
    codebook.eval()
    latents = unit(1, 4).requires_grad_()
    slope = unit(1, 4, seed=2)
    places, codes, loss = codebook(latents)
    ((places * slope).sum() + loss).backward()
    z0, e0 = latents.detach(), nn.functional.normalize(codebook.weight.detach(), dim=-1)[codes]
    torch.testing.assert_close(places.detach(), e0)  # forward, it is the code itself

    def surrogate(z, weight):
        e = nn.functional.normalize(weight, dim=-1)[codes]
        quantisation = (e - z0).square().mean() + COMMITMENT * (z - e0).square().mean()
        return ((z + (e0 - z0)) * slope).sum() + quantisation

    h = 1e-6
    for x, gradient, f in (
        (z0, latents.grad, lambda z: surrogate(z, codebook.weight.detach())),
        (codebook.weight.detach(), codebook.weight.grad, lambda w: surrogate(z0, w)),
    ):
        numeric = torch.zeros_like(x)
        for i in range(x.numel()):
            step = torch.zeros_like(x)
            step.view(-1)[i] = h
            numeric.view(-1)[i] = (f(x + step) - f(x - step)) / (2 * h)
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-9)
        assert numeric.abs().max() > 1e-3


def test_the_first_batch_places_all_codes_and_dead_ones_are_replaced_after_some_steps(codebook):
    first = unit(2, 30)
    codebook(first)
    assert all((first == code).all(-1).any() for code in codebook.weight.detach()), "every code is a latent now"
    one = codebook.weight.detach()[3].expand(1, 4, d).clone()
    before = codebook.weight.detach().clone()
    for _ in range(PATIENCE - 1):
        codebook(one)
    taken = (before == one[0, 0]).all(-1)
    recent = codebook.unused < PATIENCE
    torch.testing.assert_close(codebook.weight.detach(), before, rtol=0, atol=0)  # nothing is dead yet
    assert recent.any()
    assert not recent.all()
    fresh = unit(2, 30, seed=3)
    codebook(fresh)
    moved = (codebook.weight.detach() != before).any(-1)
    assert torch.equal(moved, ~recent)
    assert all((fresh == code).all(-1).any() for code in codebook.weight.detach()[moved])
    assert not moved[taken].all(), "the code in use stays"


def test_what_dead_codes_become_depends_on_seed_and_step_alone(codebook):
    again = copy.deepcopy(codebook)
    for step in range(3):
        codebook(unit(1, 20, seed=step))
    for step in range(2):
        again(unit(1, 20, seed=step))
    resumed = Codebook(V, d, seed=99).double()  # an interrupted run goes on from its state dict
    resumed.load_state_dict(again.state_dict())
    torch.manual_seed(123)
    resumed(unit(1, 20, seed=2))
    for name, value in codebook.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    drawn = {}
    for seed in (0, 1):
        for step in (0, 1):
            codebook.seed.fill_(seed)
            codebook.step.fill_(step)
            drawn[seed, step] = tuple(codebook.draw().tolist())
    assert len(set(drawn.values())) == 4


def test_draws_are_even():
    book = Codebook(8192, 2)
    assert book.draw().min() >= 0
    counts = torch.bincount(book.draw() % 16, minlength=16).double()
    assert (counts - 512).square().sum() / 512 < 37.7  # chi-square with 15 degrees of freedom, 0.1 %
    assert 3900 < int((book.draw() >> 62).sum()) < 4300  # the top bit too


def test_looking_does_not_count(codebook):
    before = copy.deepcopy(codebook.state_dict())
    codebook.eval()
    codebook(unit(2, 5))
    for name, value in codebook.state_dict().items():
        assert torch.equal(before[name], value), name


def test_perplexity():
    assert perplexity(torch.tensor([[3, 3], [3, 3]]), 8) == pytest.approx(1.0)
    assert perplexity(torch.arange(8), 8) == pytest.approx(8.0)
    assert perplexity(torch.tensor([0, 0, 1]), 8) == pytest.approx(3 / 2 ** (2 / 3))
