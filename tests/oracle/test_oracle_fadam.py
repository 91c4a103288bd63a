"""The FAdam oracle against numbers worked out by hand, and against what the algorithm does in its limits."""

from fractions import Fraction

import numpy as np
import pytest
from tests.oracle.adam import adam
from tests.oracle.fadam import clipped, fadam, new_share, rms


def exact(*values):
    return pytest.approx([float(Fraction(value)) for value in values], rel=1e-14, abs=0.0)


# Without a square root (rho = 1) and without a clip a single number stays rational all the way.
RATIONAL = {"lr": 0.5, "betas": (0.5, 0.5), "eps": 0.5, "weight_decay": 0.25}
RATIONAL |= {"eps2": None, "clip": None, "rho": 1.0}


def test_two_steps_by_hand():
    # t=1  f = 4,  f + eps^2 = 17/4,  gbar = 8/17,  m = 4/17,  gw = 12/17,  p = 3 - (4/17 + 3/17)/2
    p, state = fadam(np.array([3.0]), np.array([2.0]), **RATIONAL)
    assert state["step"] == 1
    assert state["f"] == exact(4)
    assert state["m"] == exact("4/17")
    assert p == exact("95/34")
    # t=2  b2hat = 1/3,  f = 4/3 + 2/3 16 = 12,  f + eps^2 = 49/4,  gbar = 16/49,  m = 2/17 + 8/49,
    #      gw = 95/34 4/49 = 190/833
    p, state = fadam(p, np.array([4.0]), state, **RATIONAL)
    assert state["step"] == 2
    assert state["f"] == exact(12)
    assert state["m"] == exact("234/833")
    assert p == exact("8747/3332")


def test_the_clip_divides_by_the_rms_over_c_where_that_exceeds_one():
    x = np.array([7.0, -17.0])
    assert rms(x) == 13.0  # (49 + 289) / 2 = 169
    assert clipped(x, 2.0) == exact("14/13", "-34/13")
    assert clipped(x, 13.0) == exact(7, -17)
    # max(1, rms) / c would double the first and halve the second (D2)
    assert clipped(x, 26.0) == exact(7, -17)
    assert clipped(x / 52.0, 0.5) == exact("7/52", "-17/52")
    assert clipped(x, None) is x


def test_gradient_and_decay_are_clipped_apart_and_before_the_momentum():
    # f = g^2 and eps = 0 make gbar = 1/g = [7, 17] with rms 13 and gw = p/g^2 = [49, 119] with rms 91.
    g = np.array([1 / 7, 1 / 17])
    p = np.array([1.0, 7 / 17])
    new, state = fadam(p, g, lr=1.0, betas=(0.75, 0.9), eps=0.0, weight_decay=0.5, eps2=None, clip=2.0, rho=1.0)
    assert state["m"] == exact("7/26", "17/26")  # 1/4 of gbar 2/13
    # p - (m + gw 2/91 / 2) = p - (7/26 + 49/91), p - (17/26 + 119/91)
    assert new == pytest.approx([1 - 7 / 26 - 49 / 91, 7 / 17 - 17 / 26 - 119 / 91], rel=1e-14)


def test_the_epsilon_is_the_smaller_of_eps_and_eps2_times_the_rms():
    options = {"betas": (0.0, 0.999), "clip": None, "weight_decay": 0.0}
    small = np.array([7e-9, 17e-9])  # rms 13e-9: 0.01 rms = 0.13e-9, below eps = 1e-8
    _, state = fadam(np.zeros(2), small, **options)
    assert state["m"] == exact("700/713", "1700/1713")
    _, state = fadam(np.zeros(2), small, eps2=None, **options)
    assert state["m"] == exact("7/17", "17/27")
    large = np.array([7.0, 17.0])
    _, state = fadam(np.zeros(2), large, eps=0.5, eps2=0.5, **options)
    assert state["m"] == exact("14/15", "34/35")  # eps = 0.5 is below 0.5 rms = 6.5


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7, 1.0])
def test_epsilon_and_metric_carry_the_power_rho(rho):
    options = {"betas": (0.0, 0.9), "eps": 0.25, "eps2": None, "clip": None, "weight_decay": 0.0}
    _, state = fadam(np.zeros(1), np.array([4.0]), rho=rho, **options)
    # f = 16 = 2^4, eps = 2^-2
    assert state["m"] == pytest.approx([4.0 / (2.0 ** (4 * rho) + 2.0 ** (-4 * rho))], rel=1e-15)


def test_f_is_adams_corrected_second_moment():
    """D4: nothing may be divided by 1 - beta2^t again."""
    rng = np.random.default_rng(0)
    mine = theirs = None
    for t in range(1, 31):
        g = rng.standard_normal(5)
        _, mine = fadam(np.zeros(5), g, mine, betas=(0.9, 0.95))
        _, theirs = adam(np.zeros(5), g, theirs, betas=(0.9, 0.95))
        np.testing.assert_allclose(mine["f"], theirs["f"] / (1.0 - 0.95**t), rtol=1e-13)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_the_first_step_forgets_where_f_started(beta2):
    assert new_share(beta2, 1) == 1.0  # D4b: exactly
    start = {"step": 0, "f": np.array([1e300]), "m": np.zeros(1)}
    _, state = fadam(np.zeros(1), np.array([3.0]), start, betas=(0.9, beta2))
    assert state["f"] == 9.0


@pytest.mark.parametrize("beta2", [Fraction(1, 2), Fraction(999, 1000)])
def test_the_share_of_the_newest_square_is_one_minus_b2hat_of_line_6(beta2):
    for t in range(1, 40):
        b2hat = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
        assert new_share(float(beta2), t) == pytest.approx(float(1 - b2hat), rel=1e-12)


def test_a_constant_gradient_moves_every_component_alike():
    """f = g^2 at every t, so gbar is the sign of g and m is 1 - beta1^t."""
    g, p, state = np.array([1e-3, -5.0, 40.0]), np.zeros(3), None
    for t in range(1, 11):
        p, state = fadam(p, g, state, eps=0.0, weight_decay=0.0)
        np.testing.assert_allclose(state["f"], g**2, rtol=1e-14)
        np.testing.assert_allclose(state["m"], np.sign(g) * (1.0 - 0.9**t), rtol=1e-13)


def test_with_rho_near_zero_the_metric_fades_away():
    g = np.array([3.0, -0.25])
    _, state = fadam(np.zeros(2), g, betas=(0.0, 0.9), clip=None, weight_decay=0.0, rho=1e-12)
    np.testing.assert_allclose(state["m"], g / 2.0, rtol=1e-9)  # f^0 + eps^0 = 2


def test_an_all_zero_gradient_changes_nothing():
    p = np.array([1.0, -2.0])
    new, state = fadam(p, np.zeros(2))
    assert np.array_equal(new, p)
    assert np.array_equal(state["f"], np.zeros(2))
    assert np.array_equal(state["m"], np.zeros(2))


def test_a_component_without_gradient_contributes_nothing_where_eps_is_zero():
    """D5 is about single components: the one beside it is trained and decayed as usual."""
    options = {"lr": 1.0, "betas": (0.5, 0.9), "eps": 0.0, "weight_decay": 0.5, "clip": None}
    new, state = fadam(np.array([5.0, 8.0]), np.array([0.0, 2.0]), **options)
    assert state["m"] == exact(0, "1/2")
    assert new == exact(5, "11/2")  # 8 - (1/2 + 1/2 4)


def test_a_component_without_gradient_beside_one_with_meets_the_small_epsilon():
    """Its decay divides by ehat alone, and it is the clip that keeps it in bounds."""
    new, _ = fadam(np.array([3.0, 0.0]), np.array([0.0, 2.0]), lr=1.0, betas=(0.0, 0.9), weight_decay=1.0)
    # gw = [3e8, 0], rms = 3e8 / sqrt 2, clipped to [sqrt 2, 0]
    np.testing.assert_allclose(new[0], 3.0 - np.sqrt(2.0), rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_the_rms_holds_at_the_ends_of_float64(scale):
    assert rms(scale * np.array([7.0, -17.0])) == pytest.approx(13.0 * scale, rel=1e-15)


def test_empty_and_zero_dimensional_arrays():
    new, state = fadam(np.zeros((0, 3)), np.zeros((0, 3)))
    assert new.shape == state["f"].shape == (0, 3)
    new, state = fadam(np.float64(3.0), np.float64(2.0), **RATIONAL)
    assert new.shape == state["f"].shape == ()
    assert float(new) == pytest.approx(95 / 34)


def test_the_inputs_are_left_alone():
    p, g = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    _, first = fadam(p, g)
    kept = {name: np.copy(value) for name, value in first.items()}
    fadam(p, g, first)
    assert p.tolist() == [1.0, 2.0]
    assert g.tolist() == [3.0, 4.0]
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
