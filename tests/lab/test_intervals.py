import math

import numpy as np
import pytest
from scipy import stats

from fisheropt_lab.intervals import paired


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 30])
def test_the_interval_is_that_of_a_paired_t_test(seeds):
    random = np.random.default_rng(seeds)
    mine, theirs = random.normal(0.1, 1, seeds), random.normal(0, 1, seeds)
    low, high = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
    assert paired(mine, theirs).interval == pytest.approx((low, high))


def test_five_differences_by_hand():
    """Mean -0.32, s = 0.0837, t(0.975, 4) = 2.776: half a width of 0.1039."""
    difference = paired((1.7, 1.7, 2.0, 1.8, 1.7), (2.0, 2.1, 2.2, 2.1, 2.1))
    assert difference.mean == pytest.approx(-0.32)
    assert difference.interval == pytest.approx((-0.4239, -0.2161), abs=1e-4)
    assert difference.seen


def test_pairing_is_what_finds_a_small_difference_between_scattered_seeds():
    theirs = (1.0, 5.0, 9.0, 13.0, 17.0)
    assert paired([x - 0.1 - 0.001 * i for i, x in enumerate(theirs)], theirs).seen
    assert not stats.ttest_ind([x - 0.1 for x in theirs], theirs).pvalue < 0.5


@pytest.mark.parametrize(
    ("differences", "seen"),
    [
        ((-1.0, -1.1, -0.9, -1.0, -1.0), True),
        ((1.0, 1.1, 0.9, 1.0, 1.0), True),
        ((-1.0, 1.0, -1.0, 1.0, 0.1), False),  # across zero
        ((-1.0, -1.1, -0.9, -1.0), False),  # too few seeds for a claim, however clear
    ],
)
def test_a_difference_is_seen_only_off_zero_and_with_seeds_enough(differences, seen):
    assert paired(differences, [0.0] * len(differences)).seen is seen


def test_one_seed_says_nothing():
    one = paired([1.0], [2.0])
    assert one.interval == (-math.inf, math.inf)
    assert one.smallest_shown == math.inf
    assert not one.seen


def test_the_smallest_difference_shown_is_shown_in_four_of_five_attempts():
    """By simulation, with the scatter known: the formula is an approximation, good to a few per cent."""
    random = np.random.default_rng(0)
    scatter, seeds, attempts = 0.3, 8, 4000
    true = (stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(0.8, seeds - 1)) * scatter / math.sqrt(seeds)
    drawn = random.normal(true, scatter, (attempts, seeds))
    low = drawn.mean(1) - stats.t.ppf(0.975, seeds - 1) * drawn.std(1, ddof=1) / math.sqrt(seeds)
    assert (low > 0).mean() == pytest.approx(0.8, abs=0.04)
    exact = paired(drawn[0], np.zeros(seeds))
    assert exact.smallest_shown == pytest.approx(true * drawn[0].std(ddof=1) / scatter)
