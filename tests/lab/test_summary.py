import pytest
from tests.lab.records import LRS, REPEATS, SEARCH, SPEC, STEP_TIMES, TEST_LOSSES, record, spec

from fisheropt_lab.selection import best_lrs
from fisheropt_lab.summary import Reach, summarise


@pytest.fixture
def rows():
    return {row.optimizer: row for row in summarise(SPEC, SEARCH + REPEATS, TEST_LOSSES, STEP_TIMES)}


def test_the_best_lr_has_the_lowest_final_validation_loss():
    assert best_lrs(SPEC, SEARCH) == {"adamw": 0.2, "fadam": 0.4, "sgd": 2.0}


def test_test_losses_cannot_move_the_choice(rows):
    """Even if every trial had been tested, and the others came out better."""
    tempting = {r.trial.id: 0.1 for r in SEARCH} | TEST_LOSSES
    again = summarise(SPEC, SEARCH + REPEATS, tempting, STEP_TIMES)
    assert again == list(rows.values())


def test_repeats_cannot_move_the_choice():
    """A learning rate is chosen on the first seed; what the others do at it comes later."""
    lucky = [record("adamw", 0.1, 1, [1.0, 1.0, 1.0, 1.0])]
    row = summarise(SPEC, SEARCH + lucky, {}, {})[0]
    assert row.best_lr == 0.2
    assert row.validation.values == (2.0,)


def test_of_equal_losses_the_smaller_lr_is_taken():
    tied = [record("adamw", lr, 0, [2.0] * 4) for lr in (0.4, 0.1, 0.2)]
    assert best_lrs(spec({"adamw": LRS["adamw"]}), tied) == {"adamw": 0.1}


def test_spreads_over_seeds(rows):
    assert rows["adamw"].validation.values == (2.0, 2.2, 2.1)  # in the order of the seeds
    assert rows["adamw"].validation.mean == pytest.approx(2.1)
    assert rows["adamw"].validation.std == pytest.approx(0.1)
    assert (rows["fadam"].test.low, rows["fadam"].test.high) == (1.7, 1.9)
    assert rows["fadam"].test.mean == pytest.approx(1.8)


def test_steps_to_the_baselines_best_loss_of_the_same_seed(rows):
    """AdamW's best losses are 2.0 (first at 30), 2.1 (at 30, though it ends higher) and 2.1 (at 30)."""
    assert rows["adamw"].reach.steps == (30, 30, 30)
    assert rows["fadam"].reach.steps == (20, 30, None)
    assert rows["fadam"].reach.median == 30
    assert rows["fadam"].reach.reached == 2
    assert rows["sgd"].reach.steps == (None, None, None)
    assert rows["sgd"].reach.median is None


def test_a_seed_that_never_gets_there_counts_as_infinite():
    assert Reach((10, None, None)).median is None
    assert Reach((10, 20, None)).median == 20
    assert Reach((10, 20)).median == 15


def test_a_diverged_seed_is_counted_and_takes_the_mean_with_it(rows):
    assert (rows["sgd"].trials, rows["sgd"].diverged, rows["sgd"].diverged_at_best) == (5, 2, 1)
    assert rows["sgd"].validation is None
    assert rows["sgd"].test is None


def test_an_optimizer_that_always_diverges_has_no_best_lr():
    search = [record("sgd", lr, 0, None) for lr in LRS["sgd"]]
    (row,) = summarise(spec({"sgd": LRS["sgd"]}), search, {}, {})
    assert (row.best_lr, row.edge, row.validation, row.test, row.reach) == (None, None, None, None, None)
    assert (row.trials, row.diverged) == (3, 3)


def test_edges_of_the_grid(rows):
    assert {name: row.edge for name, row in rows.items()} == {"adamw": None, "fadam": "highest", "sgd": None}
    single = summarise(spec({"adamw": (0.2,)}), [SEARCH[1]], {}, {})[0]
    assert single.edge is None  # a grid of one point has no edge
    lowest = summarise(spec({"adamw": (0.4, 0.2)}), SEARCH[1:3], {}, {})[0]
    assert lowest.edge == "lowest"  # wherever the user wrote it


def test_costs(rows):
    assert {name: row.state_bytes_per_parameter for name, row in rows.items()} == {"adamw": 8, "fadam": 8, "sgd": 4}
    assert rows["fadam"].step_time is STEP_TIMES["fadam"]
    assert rows["fadam"].optimizer_ms_in_training == 2.0  # the median, not moved by the slow step
