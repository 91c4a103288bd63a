"""The FAdafactor oracle: a matrix by hand, the dimensions it factors over, and where it must be FAdam."""

import numpy as np
import pytest
from tests.oracle.fadafactor import factored_dims, fadafactor, outer_over_sum
from tests.oracle.fadam import fadam

SMALL = {"min_dim_size_to_factor": 1}


def test_a_matrix_by_hand():
    # squares [[1, 4], [9, 16]]: R = [5, 25], C = [10, 20], sum 30, f = [[5/3, 10/3], [25/3, 50/3]]
    options = {"lr": 1.0, "betas": (0.5, 0.5), "eps": 0.0, "weight_decay": 0.0, "clip": None, "rho": 1.0}
    g = np.array([[1.0, 2.0], [3.0, 4.0]])
    p, state = fadafactor(np.zeros((2, 2)), g, **options, **SMALL)
    assert state["R"].tolist() == [5.0, 25.0]
    assert state["C"].tolist() == [10.0, 20.0]
    gbar = np.array([[3 / 5, 3 / 5], [9 / 25, 6 / 25]])
    np.testing.assert_allclose(state["m"], gbar / 2, rtol=1e-14)
    np.testing.assert_allclose(p, -gbar / 2, rtol=1e-14)
    # t=2, gradient [[0, 3], [0, 0]]: b2hat = 1/3, R = [5 + 18, 25] / 3, C = [10, 20 + 18] / 3, sum = 48 / 3
    g = np.array([[0.0, 3.0], [0.0, 0.0]])
    p, state = fadafactor(p, g, state, **options, **SMALL)
    np.testing.assert_allclose(state["R"], [23 / 3, 25 / 3], rtol=1e-14)
    np.testing.assert_allclose(state["C"], [10 / 3, 38 / 3], rtol=1e-14)
    # f[0, 1] = 23/3 38/3 / 16 = 437/72, gbar[0, 1] = 216/437
    m = gbar / 4 + np.array([[0.0, 108 / 437], [0.0, 0.0]])
    np.testing.assert_allclose(state["m"], m, rtol=1e-14)
    np.testing.assert_allclose(p, -gbar / 2 - m, rtol=1e-14)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((), None),
        ((7,), None),
        ((2, 3), (0, 1)),
        ((3, 2), (0, 1)),
        ((2, 3, 4), (1, 2)),
        ((4, 2, 3), (0, 2)),
        ((3, 4, 2), (0, 1)),
        ((3, 3, 2), (0, 1)),
        ((3, 3, 3), (1, 2)),  # ties go to the later dimensions
        ((5, 3, 3), (0, 2)),
        ((3, 5, 3), (1, 2)),
        ((6, 2, 5, 4), (0, 2)),
        ((0, 3), None),
    ],
)
def test_the_two_largest_dimensions_are_factored(shape, dims):
    assert factored_dims(shape, 1) == dims


def test_the_second_largest_dimension_decides_whether_to_factor():
    assert factored_dims((1000, 127), 128) is None
    assert factored_dims((1000, 128), 128) == (0, 1)
    assert factored_dims((128, 3, 128), 128) == (0, 2)
    assert factored_dims((1000, 3, 127), 128) is None


@pytest.mark.parametrize(("shape", "batch"), [((2, 3, 4), 0), ((4, 2, 3), 1), ((3, 4, 2), 2)])
def test_the_other_dimensions_batch(shape, batch):
    """Each slice is a matrix on its own, as long as no whole-tensor mean ties them together."""
    options = {"eps2": None, "clip": None, **SMALL}
    rng = np.random.default_rng(0)
    p, state = rng.standard_normal(shape), None
    alone = [(slice_, None) for slice_ in np.moveaxis(p, batch, 0)]
    for _ in range(3):
        g = rng.standard_normal(shape)
        p, state = fadafactor(p, g, state, **options)
        alone = [fadafactor(q, h, s, **options) for (q, s), h in zip(alone, np.moveaxis(g, batch, 0), strict=True)]
    for slice_, (q, _) in zip(np.moveaxis(p, batch, 0), alone, strict=True):
        np.testing.assert_allclose(slice_, q, rtol=1e-14)


def test_squares_of_rank_one_lose_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(3), rng.standard_normal(4)
    p = q = rng.standard_normal((3, 4))
    state = full = None
    for t in range(1, 6):
        g = np.outer(a, b) * t
        p, state = fadafactor(p, g, state, **SMALL)
        q, full = fadam(q, g, full)
    np.testing.assert_allclose(outer_over_sum(state["R"], state["C"], 0, 1), full["f"], rtol=1e-13)
    np.testing.assert_allclose(p, q, rtol=1e-13)


@pytest.mark.parametrize("shape", [(), (9,), (127, 200), (3, 4)])
def test_a_small_tensor_follows_fadam(shape):
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(shape), rng.standard_normal(shape)
    mine, state = fadafactor(p, g)
    theirs, full = fadam(p, g)
    assert np.array_equal(mine, theirs)
    assert state.keys() == full.keys() == {"step", "f", "m"}


def test_an_all_zero_gradient_changes_nothing():
    """D11: sum(R) = 0 gives f = 0, and D5 does the rest."""
    p = np.arange(6.0).reshape(2, 3)
    new, state = fadafactor(p, np.zeros((2, 3)), **SMALL)
    assert np.array_equal(new, p)
    assert not state["R"].any()
    assert not state["C"].any()


def test_a_silent_batch_element_does_not_disturb_the_others():
    g = np.zeros((2, 3, 4))
    g[1] = 2.0
    _, state = fadafactor(np.zeros((2, 3, 4)), g, **SMALL)
    f = outer_over_sum(state["R"], state["C"], 1, 2)
    np.testing.assert_allclose(f[1], 4.0, rtol=1e-15)
    assert not f[0].any()
