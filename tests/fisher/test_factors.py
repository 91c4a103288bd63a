"""The factors of every layer: against dense per-example Jacobians where they are exact, and the oracle elsewhere."""

import itertools

import numpy as np
import pytest
import torch
from tests.oracle import adafisher as oracle
from torch import nn

from fisheropt.fisher.factors import layer_of, minmax, sum_of_squares

DOUBLE = {"dtype": torch.float64}


def jacobian_squares(module, x, s):
    """For each parameter, the square of the gradient of one example, from the dense Jacobian of the layer."""
    names, params = zip(*module.named_parameters(), strict=True)

    def outputs(*given):
        return torch.func.functional_call(module, dict(zip(names, given, strict=True)), (x,)).reshape(-1)

    jacobians = torch.func.jacrev(outputs, argnums=tuple(range(len(params))))(*params)
    return {n: torch.tensordot(s.reshape(-1), j, 1).square() for n, j in zip(names, jacobians, strict=True)}


def factors(module, x, s):
    """Hhat and Shat of the library, the 1 of a bias included."""
    layer = layer_of(module)
    S, units = layer.output_squares(s)
    H = layer.input_squares(x) / units
    return torch.cat([H, torch.ones(int(layer.bias), **DOUBLE)]), S / units


ONE_POSITION = {
    "linear": (nn.Linear(3, 4, **DOUBLE), (3,)),
    "linear without bias": (nn.Linear(3, 4, bias=False, **DOUBLE), (1, 3)),
    "conv1d": (nn.Conv1d(2, 3, 4, **DOUBLE), (1, 2, 4)),
    "conv2d": (nn.Conv2d(2, 3, (2, 3), **DOUBLE), (1, 2, 2, 3)),
    "conv2d unbatched": (nn.Conv2d(2, 3, (2, 3), **DOUBLE), (2, 2, 3)),
    "conv2d grouped": (nn.Conv2d(4, 6, 2, groups=2, **DOUBLE), (1, 4, 2, 2)),
    "conv2d depthwise": (nn.Conv2d(3, 6, 2, groups=3, bias=False, **DOUBLE), (1, 3, 2, 2)),
    "conv2d dilated": (nn.Conv2d(2, 3, 2, dilation=2, **DOUBLE), (1, 2, 3, 3)),
    "conv2d padded": (nn.Conv2d(2, 3, 3, padding=1, stride=9, **DOUBLE), (1, 2, 2, 2)),
    "conv1d grouped, dilated": (nn.Conv1d(4, 6, 2, dilation=3, groups=2, **DOUBLE), (1, 4, 4)),
    "conv3d grouped, dilated": (nn.Conv3d(4, 2, 2, dilation=2, groups=2, **DOUBLE), (1, 4, 3, 3, 3)),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 2), **DOUBLE), (1, 2, 1, 2, 2)),
}


@pytest.mark.parametrize("kind", ONE_POSITION)
def test_of_one_unit_the_product_is_the_squared_jacobian(kind):
    """Where there is one unit at one position, nothing is approximated."""
    module, shape = ONE_POSITION[kind]
    x = torch.randn(shape, **DOUBLE)
    s = torch.randn_like(module(x))
    H, S = factors(module, x, s)
    for name, expected in jacobian_squares(module, x, s).items():
        rows, columns = layer_of(module).placed(name, S, H)
        product = (rows * columns).expand(expected.shape)
        torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-14)


def test_of_one_token_an_embeddings_product_is_the_squared_jacobian():
    module = nn.Embedding(5, 3, **DOUBLE)
    s = torch.randn(3, **DOUBLE)
    rows, columns = layer_of(module).placed("weight", *reversed(factors(module, torch.tensor(2), s)))
    expected = jacobian_squares(module, torch.tensor(2), s)["weight"]
    torch.testing.assert_close(rows * columns, expected, rtol=1e-12, atol=0.0)


def test_where_the_inputs_squares_do_not_vary_the_product_is_the_mean_over_examples():
    """h = +-1: then the mean of s^2 h^2 is the mean of s^2 times that of h^2, exactly, for any number of examples."""
    module = nn.Linear(4, 3, **DOUBLE)
    x = torch.randint(0, 2, (50, 4)).double() * 2 - 1
    s = torch.randn(50, 3, **DOUBLE)
    each = [jacobian_squares(module, *example) for example in zip(x, s, strict=True)]
    H, S = factors(module, x, s)
    for name in ("weight", "bias"):
        rows, columns = layer_of(module).placed(name, S, H)
        expected = torch.stack([squares[name] for squares in each]).mean(0)
        torch.testing.assert_close((rows * columns).expand(expected.shape), expected, rtol=1e-12, atol=0.0)


def test_the_factors_are_the_marginals_of_the_per_example_jacobians():
    """With a one-hot s the rows of the Jacobian are h, and the bias's gradient is s: both per example."""
    module = nn.Linear(4, 3, **DOUBLE)
    x, s = torch.randn(20, 4, **DOUBLE), torch.randn(20, 3, **DOUBLE)
    H, S = factors(module, x, s)
    first = torch.tensor([1.0, 0.0, 0.0], **DOUBLE)
    h2 = torch.stack([jacobian_squares(module, example, first)["weight"][0] for example in x])
    s2 = torch.stack([jacobian_squares(module, *example)["bias"] for example in zip(x, s, strict=True)])
    torch.testing.assert_close(H[:4], h2.mean(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(S, s2.mean(0), rtol=1e-12, atol=0.0)


MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
CONVS = [
    *itertools.product([1], [1, 2, 3], [1, 2], [0, 2, "same", "valid"], MODES, [1, 2]),
    *itertools.product([2], [(1, 1), (2, 3)], [(1, 1), (2, 1)], [(2, 1), "same"], MODES, [1, 2, 4]),
    *itertools.product([3], [1, 2], [1, 2], [1], MODES, [1, 2]),
]
ALLOWED = [case for case in CONVS if not (case[3] == "same" and case[1] not in (1, (1, 1)))]  # torch has no other


@pytest.mark.parametrize("space", [1, 2, 3])
def test_a_convolutions_factors_are_the_means_over_its_patches(space):
    """Every padding mode, stride, dilation and grouping, against patches that are cut out one by one."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[space]
    cases = [case[1:] for case in ALLOWED if case[0] == space]
    assert len(cases) >= 8
    for stride, dilation, padding, mode, groups in cases:
        module = conv(4, 8, 3, stride, padding, dilation, groups, padding_mode=mode, **DOUBLE)
        x = torch.randn(2, 4, *(7, 6, 5)[:space], **DOUBLE)
        y = module(x)
        s = torch.randn_like(y)
        pad = padding_of(module)
        h = oracle.patches(x.numpy(), module.kernel_size, module.stride, module.dilation, pad, MODES[mode])
        assert len(h) == y.numel() // 8, "or the patches are not those of the convolution"
        H, S = factors(module, x, s)
        expected = oracle.factors(oracle.with_one(h), s.movedim(1, -1).reshape(-1, 8).numpy(), gammas=(0.0, 0.0))
        np.testing.assert_allclose(H, expected[0], rtol=1e-12)
        np.testing.assert_allclose(S, expected[1], rtol=1e-12)


def padding_of(module):
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(t // 2, t - t // 2) for t in totals]
    return [(n, n) for n in module.padding]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_an_even_kernel_with_padding_same_is_padded_more_at_the_end():
    module = nn.Conv1d(2, 3, 4, padding="same", **DOUBLE)
    x = torch.randn(3, 2, 6, **DOUBLE)
    h = oracle.patches(x.numpy(), (4,), (1,), (1,), [(1, 2)])
    H, _ = factors(module, x, torch.randn_like(module(x)))
    np.testing.assert_allclose(H[:-1], np.mean(h**2, axis=0), rtol=1e-12)


def test_an_embedding_counts_tokens_and_not_padding():
    module = nn.Embedding(5, 3, padding_idx=4)
    tokens = torch.tensor([[0, 2, 2], [4, 2, 4]])
    assert layer_of(module).input_squares(tokens).tolist() == [1, 0, 3, 0, 0]
    assert layer_of(nn.Embedding(5, 3)).input_squares(tokens).tolist() == [1, 0, 3, 0, 2]


def test_leading_dimensions_are_units():
    module = nn.Linear(3, 2, **DOUBLE)
    x, s = torch.randn(2, 5, 4, 3, **DOUBLE), torch.randn(2, 5, 4, 2, **DOUBLE)
    for many, flat in zip(factors(module, x, s), factors(module, x.reshape(40, 3), s.reshape(40, 2)), strict=True):
        torch.testing.assert_close(many, flat, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_exact_in_every_dtype(dtype):
    """Long enough for several blocks; the squares of half-precision numbers leave its range."""
    x = (torch.randn(70_000, 3) * 1000).to(dtype)
    expected = np.square(x.double().numpy()).sum(0)
    np.testing.assert_allclose(sum_of_squares(x), expected, rtol=1e-13)


def test_a_layer_that_computes_something_else_is_none():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(2 * x)

    class Named(nn.Linear):
        """Computes what its parent does."""

    attention = nn.MultiheadAttention(4, 2)
    assert layer_of(Doubled(2, 2)) is None
    assert layer_of(attention.out_proj) is None
    assert layer_of(nn.ConvTranspose2d(2, 2, 2)) is None
    assert layer_of(nn.LayerNorm(2)) is None
    assert layer_of(Named(2, 3)) == layer_of(nn.Linear(2, 3))


def test_minmax_is_the_oracles_and_one_where_nothing_varies():
    x = torch.randn(4, 5, **DOUBLE).square()
    np.testing.assert_allclose(minmax(x), oracle.minmax(x.numpy()), rtol=1e-15)
    assert minmax(torch.tensor([3.0])).tolist() == [1.0]
    assert minmax(torch.zeros(2, 2)).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert minmax(torch.tensor([0.0, 1e-300], **DOUBLE)).tolist() == [0.0, 1.0]
    assert minmax(torch.empty(0)).shape == (0,)
