"""f^rho, written out for the device, against float64."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from tests.kernels.triton.harness import DEVICE

from fisheropt.kernels.triton._numbers import exponent, power


@triton.jit
def kernel(x, y, N: tl.constexpr, RHO: tl.constexpr, RHO_HIGH: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, power(tl.load(x + i), RHO, RHO_HIGH))


@pytest.mark.parametrize("rho", [0.01, 0.3, 0.5, 0.7, 1.0, 1.3, 2.0, 7.1])
def test_a_power_is_right_to_the_last_bits_over_the_whole_range(rho):
    x = torch.logspace(-45, 38, 4096, dtype=torch.float64).float()
    x[:4] = torch.tensor([0.0, 1.0, 2.0**-149, torch.finfo(torch.float32).max / 2])
    x, y = x.to(DEVICE), torch.empty_like(x, device=DEVICE)
    kernel[(1,)](x, y, x.numel(), **exponent(rho))
    expected = x.cpu().double().numpy() ** rho
    inside = (expected == 0) | (expected > 1.2e-38) & (expected < 3.4e38)
    actual = y.cpu().double().numpy()
    np.testing.assert_allclose(actual[inside], expected[inside], rtol=2.4e-7 * max(1.0, rho), atol=0)
    largest = torch.finfo(torch.float32).max
    np.testing.assert_allclose(actual[~inside], np.minimum(expected, largest)[~inside], rtol=1e-6, atol=3e-45)
