"""AdaFisher's oracle against numbers worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from tests.oracle.adafisher import (
    adafisher,
    average,
    elementwise,
    factors,
    kronecker,
    minmax,
    one_hot,
    patches,
    with_one,
)


def exact(*values):
    return pytest.approx([float(Fraction(value)) for value in values], rel=1e-14, abs=0.0)


def test_minmax_by_hand():
    assert minmax([2.0, 6.0, 3.0]).tolist() == [0.0, 1.0, 0.25]
    assert minmax([5.0]).tolist() == [1.0]
    assert minmax([0.0, 0.0]).tolist() == [1.0, 1.0]


def test_factors_by_hand():
    # two units: h = (1, 3, 1) and (3, 1, 1) with the 1 of a bias, s = (2, 0) and (0, 4)
    h = with_one(np.array([[1.0, 3.0], [3.0, 1.0]]))
    H, S = factors(h, np.array([[2.0, 0.0], [0.0, 4.0]]), gammas=(0.5, 0.5))
    assert H.tolist() == [2.5, 2.5, 0.5]  # means 5, 5, 1
    assert S.tolist() == [1.0, 4.0]  # means 2, 8
    H, S = factors(np.array([[4.0, 0.0, 1.0]]), np.array([[0.0, 2.0]]), (H, S), gammas=(0.5, 0.25))
    assert H.tolist() == [13.25, 1.25, 1.0]  # 5/4 + 3/4 16, 5/4, 1/4 + 3/4
    assert S.tolist() == [0.5, 5.0]
    F = kronecker(H, S, damping=0.125)
    assert F[0] == exact("1/8", "1/8", "1/8")
    assert F[1] == exact("9/8", Fraction(1, 8) + Fraction(1, 49), "1/8")


def test_minmax_before_the_average_by_hand():
    # starts at 1: 1/2 + 1/4 (1, 0, 1/4)
    H = average(None, np.array([6.0, 2.0, 3.0]), (0.5, 0.75), "before")
    assert H.tolist() == [0.75, 0.5, 0.5625]
    F = kronecker(H, np.array([2.0]), damping=0.5, normalize="before")
    assert F[0] == exact("2", "3/2", "13/8")


def test_the_published_factors_settle_within_eight_percent_of_the_damping():
    """A constant input settles at 0.008/0.92, so their product at 7.6e-5 (D14)."""
    known = None
    for _ in range(30):
        known = factors([[0.0, 2.0]], [[1.0, 5.0]], known, gammas=(0.08, 0.992), normalize="before")
    H, S = known
    assert H[0] < 1e-30
    assert H[1] == pytest.approx(0.008 / 0.92, rel=1e-12)
    F = kronecker(H, S, normalize="before")
    assert F.max() == pytest.approx(1e-3 * (1 + 1e3 * (0.008 / 0.92) ** 2), rel=1e-12)
    assert F.max() < 1.08e-3


def test_a_step_by_hand():
    options = {"F": np.array([0.5]), "lr": 0.25, "beta": 0.5, "weight_decay": 0.5}
    # t=1  g = 3 + 2/2 = 4, mhat = 4, p = 2 - 8/4
    p, state = adafisher(np.array([2.0]), np.array([3.0]), **options)
    assert state["m"] == exact(2)
    assert p == exact(0)
    # t=2  m = 1 + 3/2, mhat = 10/3, p = -(20/3)/4
    p, state = adafisher(p, np.array([3.0]), state, **options)
    assert state["m"] == exact("5/2")
    assert p == exact("-5/3")


def test_a_decoupled_step_by_hand():
    p, state = adafisher(np.array([2.0]), np.array([3.0]), F=0.5, lr=0.25, beta=0.5, weight_decay=0.5, decoupled=True)
    assert state["m"] == exact("3/2")
    assert p == exact("1/4")  # 2 - (6 + 1)/4


def test_elementwise_by_hand():
    f = average(average(None, np.array([4.0, 1.0]), (0.5, 0.5)), np.array([0.0, 9.0]), (0.5, 0.5))
    assert f.tolist() == [1.0, 4.75]
    assert elementwise(f, damping=0.25).tolist() == [0.25, 1.25]


def test_patches_by_hand():
    image = np.arange(1.0, 5.0).reshape(1, 1, 4)
    assert patches(image, (2,), (1,), (1,), [(0, 0)]).tolist() == [[1, 2], [2, 3], [3, 4]]
    assert patches(image, (2,), (2,), (2,), [(1, 0)]).tolist() == [[0, 2], [2, 4]]
    assert patches(image, (3,), (3,), (1,), [(1, 1)], "wrap").tolist() == [[4, 1, 2], [3, 4, 1]]
    two = np.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    assert patches(two, (2, 2), (1, 1), (1, 1), [(0, 0)] * 2).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_one_hot_by_hand():
    assert one_hot([[2, 0]], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
