"""The Conformer: relative attention against its formula, padding, and the sizes it claims."""

import math

import pytest
import torch

from fisheropt_lab.models.conformer import SIZES, Conformer, ConformerConfig, RelativeAttention, distance_waves

SMALL = ConformerConfig(layers=2, width=16, heads=2, mels=8, kernel=5, channels=4)


def test_scores_depend_on_content_and_distance_as_in_the_formula():
    torch.manual_seed(0)
    layer, T, D, K = RelativeAttention(SMALL).double(), 7, 16, 8
    torch.nn.init.normal_(layer.content_bias)
    torch.nn.init.normal_(layer.distance_bias)
    x = torch.randn(1, T, D, dtype=torch.float64)
    got = layer(x, distance_waves(T, D, x.device).double(), torch.ones(1, T, dtype=torch.bool))

    h = layer.norm(x)[0]
    q, k, v = layer.query(h), layer.key(h), layer.value(h)
    heads = []
    for head in range(2):
        part = slice(head * K, (head + 1) * K)
        scores = torch.zeros(T, T, dtype=torch.float64)
        for i in range(T):
            for j in range(T):
                wave = distance_waves(T, D, x.device).double()[T - 1 - (i - j)]  # row 0 is the distance T - 1
                r = layer.distance(wave)[part]
                content = (q[i, part] + layer.content_bias[head, 0]) @ k[j, part]
                scores[i, j] = (content + (q[i, part] + layer.distance_bias[head, 0]) @ r) / math.sqrt(K)
        heads.append(scores.softmax(-1) @ v[:, part])
    assert torch.allclose(got[0], layer.out(torch.cat(heads, -1)), rtol=1e-10)


def test_waves_are_those_of_the_distances():
    waves = distance_waves(3, 4, torch.device("cpu"))
    assert torch.allclose(waves[:, 0], torch.sin(torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])))


@pytest.mark.parametrize("frames", [13, 16, 21])
def test_an_utterance_gives_the_same_numbers_in_any_batch(frames):
    torch.manual_seed(1)
    model = Conformer(SMALL).double()
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    alone, lengths = model(x[:1, :frames], torch.tensor([frames]))
    x[0, frames:] = 1e3  # padding may be anything
    together, both = model(x, torch.tensor([frames, 24]))
    n = lengths.item()
    assert both.tolist() == [n, 6]
    assert n == math.ceil(frames / 4)
    assert torch.allclose(alone[0], together[0, :n], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("tiny", 717_472), ("small", 8_710_848), ("base", 27_327_488), ("large", 115_111_424), ("600m", 607_660_416)],
)
def test_sizes(size, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in Conformer(SIZES[size]).parameters()) == parameters
