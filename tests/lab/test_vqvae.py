import math

import pytest
import torch
from torch import nn

from fisheropt_lab.models.vqvae import SIZES, VqVae, VqVaeConfig, Whiten, waves
from fisheropt_lab.tasks.image.pixel_losses import CHANNELS, LOSSES

SMALL = VqVaeConfig(side=8, patch=2, layers=2, width=16, heads=2, codes=7, code_width=3, pixel_width=4)


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 978_504), ("small", 9_672_464), ("base", 51_910_432), ("100m", 100_238_368)]
)
def test_parameter_counts(size, parameters):
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in VqVae(SIZES[size], CHANNELS * loss.numbers).parameters())
            for name, loss in LOSSES.items()
        }
    assert counts["ce"] == parameters
    assert max(counts.values()) < 1.03 * min(counts.values()), "the contrast is the likelihood, not the model"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VqVae(SMALL, 6).double().eval()


def test_patches_and_pixels_keep_their_places(model):
    """Encoder: a pixel of one patch moves the input of that patch only. Decoder: a token paints its own patch only."""
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    seen = []
    model.patches.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(images)
    changed = images.clone()
    changed[0, 1, 5, 2] += 0.1  # row 5, column 2: patch row 2, patch column 1, of four across
    model(changed)
    moved = (seen[0] != seen[1]).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [2 * 4 + 1]

    model.decoder = nn.Identity()  # without attention a token is on its own
    quantised = torch.randn(1, 16, 3, dtype=torch.float64)
    other = quantised.clone()
    other[0, 9] += 1
    painted = (model.decode(quantised) != model.decode(other)).any(-1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:6, 2:4] = True
    assert torch.equal(painted, expected)


def test_attention_written_out(model):
    block = model.encoder.blocks[0]
    h = torch.randn(1, 5, 16, dtype=torch.float64)
    q, k, v = (h @ block.query_key_value.weight.T).split(16, -1)  # biases are zero at first
    heads = []
    for i in range(2):
        mine = slice(8 * i, 8 * i + 8)
        scores = q[0, :, mine] @ k[0, :, mine].T / math.sqrt(8)
        heads.append(scores.softmax(-1) @ v[0, :, mine])
    torch.testing.assert_close(block.attend(h)[0], torch.cat(heads, -1) @ block.attention_out.weight.T)


def test_every_place_has_its_own_waves():
    table = waves(4, 16)
    assert table.shape == (16, 16)
    assert len({tuple(row) for row in table.tolist()}) == 16
    torch.testing.assert_close(table[2 * 4 + 3, [0, 8]], torch.tensor([2.0, 3.0]).sin())  # row, column


def test_shapes(model):
    features, codes, loss = model(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    assert features.shape == (2, 8, 8, 4)
    assert codes.shape == (2, 16)
    assert loss.shape == ()
    assert model.head(features).shape == (2, 8, 8, 6)


def test_latents_on_a_line_are_whitened_and_looking_takes_averages():
    whiten = Whiten(3).double()
    torch.manual_seed(0)
    z = torch.randn(4, 50, 3, dtype=torch.float64) @ torch.tensor([[3.0, 1, 0], [0, 0.5, 2], [1, 0, 1]]).double() + 7
    covariance = z.flatten(0, 1).T.cov(correction=0)
    ridge = 0.01 * covariance.trace() / 3 * torch.eye(3, dtype=torch.float64)
    white = whiten(z).flatten(0, 1)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    L = torch.linalg.cholesky(covariance + ridge)
    torch.testing.assert_close(white.T.cov(correction=0), L.inverse() @ covariance @ L.inverse().T)
    torch.testing.assert_close(whiten.mean, 0.1 * z.mean((0, 1)))
    torch.testing.assert_close(whiten.covariance, 0.9 * torch.eye(3, dtype=torch.float64) + 0.1 * covariance)
    whiten.eval()
    torch.testing.assert_close(whiten(z[:1]), whiten(z)[:1])
    assert whiten.train()(z * torch.nan).isnan().all(), "a training that diverges is told by its loss, not by an error"
