"""The oracles of the paper's baselines against numbers worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from tests.oracle.adafactor import adafactor
from tests.oracle.adam import adam
from tests.oracle.naturaladam import naturaladam

ONE = {"p": np.array([3.0]), "g": np.array([2.0])}


def exact(*values):
    return pytest.approx([float(Fraction(value)) for value in values], rel=1e-14, abs=0.0)


def test_adam_by_hand():
    options = {"lr": 0.5, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.25, "clip": None}
    # t=1  f = 9/2 read as 9, m = 3/2 read as 3, update 1,  p = 2 - (1 + 2/4)/2
    p, state = adam(np.array([2.0]), np.array([3.0]), **options)
    assert state["f"] == exact("9/2")
    assert state["m"] == exact("3/2")
    assert p == exact("5/4")
    # t=2  f = 9/4 + 1089/2 read as 729 = 27^2, m = 3/4 + 33/2 read as 23, update 23/27
    p, state = adam(p, np.array([33.0]), state, **options)
    assert state["f"] == exact("2187/4")
    assert state["m"] == exact("69/4")
    assert p == exact(Fraction(5, 4) - (Fraction(23, 27) + Fraction(5, 16)) / 2)


def test_adam_adds_epsilon_outside_the_root_and_clips_the_whole_update():
    p, _ = adam(np.zeros(2), np.array([2.0, -3.0]), lr=1.0, eps=1.0, clip=None)
    assert p == exact("-2/3", "3/4")
    # the update is [1, -1] without eps: rms 1, clipped at 1/4
    p, _ = adam(np.zeros(2), np.array([2.0, -3.0]), lr=1.0, eps=0.0, clip=0.25)
    assert p == exact("-1/4", "1/4")


def test_adam_leaves_the_decay_unclipped():
    p, _ = adam(np.array([8.0]), np.array([2.0]), lr=0.5, eps=0.0, weight_decay=0.5, clip=0.5)
    assert p == exact("23/4")  # 8 - (1/2 + 8/2)/2


def test_adafactor_by_hand():
    options = {"lr": 0.25, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.125, "clip": None}
    # t=1  f = 4, u = 1, m = 1/2 1/4,  p = 3 - 1/8 - 3/8: the decay is not scaled by lr
    p, state = adafactor(np.array([3.0]), np.array([2.0]), **options)
    assert state["f"] == exact(4)
    assert state["m"] == exact("1/8")
    assert p == exact("5/2")
    # t=2  b2hat = 1/3, f = 4/3 + 2/3 484 = 324 = 18^2, u = 11/9, m = 1/16 + 11/72 = 31/144
    p, state = adafactor(p, np.array([22.0]), state, **options)
    assert state["f"] == exact(324)
    assert state["m"] == exact("31/144")
    assert p == exact("71/36")


def test_adafactor_clips_before_the_momentum():
    options = {"lr": 1.0, "betas": (0.5, 0.5), "eps": 0.0}
    _, state = adafactor(np.zeros(1), np.array([2.0]), **options)
    _, state = adafactor(np.zeros(1), np.array([22.0]), state, **options)
    assert state["m"] == exact("3/4")  # u = 11/9 clipped to 1: 1/4 + 1/2


def test_adafactor_keeps_row_and_column_sums_of_the_square_plus_eps():
    # squares plus 1: [[2, 5], [10, 17]]: R = [7, 27], C = [12, 22], sum 34
    p, state = adafactor(
        np.zeros((2, 2)),
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        lr=1.0,
        betas=(0.0, 0.9),
        eps=1.0,
        clip=None,
        min_dim_size_to_factor=1,
    )
    assert state["R"].tolist() == [7.0, 27.0]
    assert state["C"].tolist() == [12.0, 22.0]
    f = np.array([[84, 154], [324, 594]]) / 34
    np.testing.assert_allclose(p, -np.array([[1.0, 2.0], [3.0, 4.0]]) / np.sqrt(f), rtol=1e-14)


def test_naturaladam_by_hand():
    options = {"lr": 0.5, "betas": (0.5, 0.5), "eps": 1.0, "weight_decay": 0.25, "eps_decay": 1.0}
    # t=1  eps_t = 1/2, shat = 9/4, d = 3/2 / (3/2 + 1/2) = 3/4 below the norm 1,  p = 8 - (3/4 + 1/4 8/2)/2
    p, state = naturaladam(np.array([8.0]), np.array([1.5]), **options)
    assert state["m"] == exact("3/4")
    assert state["s"] == exact("9/8")
    assert p == exact("57/8")
    # t=2  gradient 33/2: mhat = 23/2, shat = (27/2)^2, eps_t = 1/3, denominator 83/6, d = 69/83
    p, state = naturaladam(p, np.array([16.5]), state, **options)
    assert state["m"] == exact("69/8")
    assert state["s"] == exact("2187/16")
    assert p == exact(Fraction(57, 8) - Fraction(69, 83) / 2 - Fraction(57, 8) * Fraction(6, 83) / 8)


def test_naturaladam_scales_the_step_to_the_norm_and_leaves_the_decay_unclipped():
    g = np.array([2.0, -3.0, 4.0, 5.0])  # d is the sign of g, of norm 2
    p, _ = naturaladam(np.full(4, 30.0), g, lr=1.0, eps=0.0, weight_decay=1.0)
    assert p == exact(30 - 0.5 - 15, 30 + 0.5 - 10, 30 - 0.5 - 7.5, 30 - 0.5 - 6)
    p, _ = naturaladam(np.zeros(4), g, lr=1.0, eps=0.0, max_norm=3.0)
    assert p == exact(-1, 1, -1, -1)


@pytest.mark.parametrize("rule", [adam, adafactor, naturaladam])
@pytest.mark.parametrize("eps", [{}, {"eps": 0.0}])
def test_an_all_zero_gradient_changes_nothing(rule, eps):
    p = np.array([[1.0, -2.0]])
    new, state = rule(p, np.zeros((1, 2)), **eps)
    assert np.array_equal(new, p)
    assert all(np.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("rule", [adam, adafactor, naturaladam])
def test_the_inputs_are_left_alone(rule):
    _, first = rule(**ONE)
    kept = {name: np.copy(value) for name, value in first.items()}
    rule(**ONE, state=first)
    assert ONE["p"].tolist() == [3.0]
    assert ONE["g"].tolist() == [2.0]
    assert all(np.array_equal(first[name], kept[name]) for name in kept)
