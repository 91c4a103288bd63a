import math

import pytest
import torch
from torch import nn

from fisheropt_lab.models.palm import SIZES, Palm, PalmConfig, Rotary, rotate

SMALL = PalmConfig(layers=2, width=32, heads=4, vocabulary=11)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Palm(SMALL).double()


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 983_680), ("small", 12_782_208), ("base", 100_476_672), ("1b", 1_066_964_992)]
)
def test_parameter_counts(size, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in Palm(SIZES[size]).parameters()) == parameters


def test_future_bytes_do_not_change_past_logits(model):
    tokens = torch.arange(10).remainder(11)[None]
    changed = tokens.clone()
    changed[0, 6] = 10
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=1e-13)
    assert (after[:, 6:] - before[:, 6:]).abs().amax(dim=-1).min() > 1e-3  # every later position did see it


def test_rotary_scores_depend_on_distance_only():
    K, T = 8, 12
    torch.manual_seed(0)
    q, k = torch.randn(K, dtype=torch.float64), torch.randn(K, dtype=torch.float64)
    cos, sin = Rotary(K).double().table(T)
    turned_q, turned_k = (rotate(x.expand(1, 1, T, K), cos, sin)[0, 0] for x in (q, k))  # (T, K) each
    scores = turned_q @ turned_k.T  # (T, T): score of query position t with key position s
    for distance in range(-T + 1, T):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal))
    torch.testing.assert_close(scores[0, 0], q @ k)
    assert scores[0].unique().numel() == T  # and different distances give different scores


def test_rotary_angles():
    cos, sin = Rotary(4).double().table(3)
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.01], [2.0, 0.02]], dtype=torch.float64)  # t * 10000^(-2i/4)
    torch.testing.assert_close(cos, angles.cos(), rtol=0, atol=1e-7)
    torch.testing.assert_close(sin, angles.sin(), rtol=0, atol=1e-7)


def test_attention_is_multi_query_attention_written_out(model):
    block, T = model.blocks[0], 5
    h = torch.randn(1, T, SMALL.width, dtype=torch.float64)
    cos, sin = model.rotary.table(T)
    K = SMALL.head_width
    key, value = (h @ block.key_value.weight.T).split(K, dim=-1)  # (1, T, K) each: one head for all queries
    key = rotate(key[:, None], cos, sin)[0, 0]  # (T, K)
    heads = []
    for i in range(SMALL.heads):
        query = h @ block.query.weight[i * K : (i + 1) * K].T  # (1, T, K)
        query = rotate(query[:, None], cos, sin)[0, 0]  # (T, K)
        scores = query @ key.T / math.sqrt(K)  # (T, T)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(dim=-1) @ value[0])  # (T, K)
    expected = torch.cat(heads, dim=-1) @ block.attention_out.weight.T  # (T, D)
    torch.testing.assert_close(block.attend(h, cos, sin)[0], expected)


def test_branches_are_parallel(model):
    block = model.blocks[0]
    x = torch.randn(1, 5, SMALL.width, dtype=torch.float64)
    cos, sin = model.rotary.table(5)
    h = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    up, gate, down = block.up.weight, block.gate.weight, block.down.weight
    feed_forward = ((h @ gate.T) * torch.sigmoid(h @ gate.T) * (h @ up.T)) @ down.T
    torch.testing.assert_close(block(x, cos, sin), x + block.attend(h, cos, sin) + feed_forward)


def test_output_layer_is_the_embedding(model):
    assert [name for name, p in model.named_parameters() if SMALL.vocabulary in p.shape] == ["embedding.weight"]
    tokens = torch.tensor([[1, 2, 3]])
    before = model(tokens)
    with torch.no_grad():
        model.embedding.weight[7] += 1.0  # a byte that is not among the inputs: only its own logit may move
    moved = (model(tokens) - before).abs().amax(dim=(0, 1)) > 1e-9
    assert moved.nonzero().flatten().tolist() == [7]


def test_there_are_no_biases(model):
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 6 * SMALL.layers + 1
    assert all(layer.bias is None for layer in linear)
