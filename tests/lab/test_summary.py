import pytest
from tests.lab.records import CHOICES, RECORDS, SEEDS, SPEC, STEP_TIMES, TRACKS, fresh, record, results, spec

from fisheropt_lab.record import HeldOut
from fisheropt_lab.summary import Reach, loss_at, summarise
from fisheropt_lab.sweeps.job import Result
from fisheropt_lab.tracks import reported
from fisheropt_lab.tuning import tune


@pytest.fixture
def rows():
    return {row.key: row for row in summarise(SPEC, results(), CHOICES, TRACKS, STEP_TIMES)}


def test_spreads_over_fresh_seeds(rows):
    assert rows["adamw"].tuned.test.values == (2.0, 2.1, 2.2, 2.1, 2.1)  # in the order of the seeds
    assert rows["adamw"].tuned.test.mean == pytest.approx(2.1)
    assert rows["adamw"].tuned.test.std == pytest.approx(0.0707, abs=1e-4)
    assert rows["adamw"].tuned.validation.values == pytest.approx((2.01, 2.02, 2.03, 2.04, 2.05))


def test_differences_are_taken_seed_by_seed_to_the_tuned_baseline(rows):
    assert rows["fadam"].tuned.difference.differences == pytest.approx((-0.3, -0.4, -0.2, -0.3, -0.4))
    assert rows["fadam"].drop_in.difference.differences == pytest.approx((0.1, -0.1, 0.1, -0.1, 0.0))
    assert rows["adamw"].tuned.difference.differences == (0.0,) * 5


def test_a_metric_that_judges_and_is_better_when_higher_turns_the_sign():
    judged = spec({name: entry.lrs for name, entry in SPEC.entries.items()}, judge="accuracy")

    def scored(one):
        return Result(one.record, one.tested and HeldOut(one.tested.loss, {"accuracy": 1 - one.tested.loss / 10}))

    found = {trial: scored(one) for trial, one in results().items()}
    rows = summarise(judged, found, CHOICES, TRACKS, {}, higher_is_better=True)
    assert rows[1].tuned.difference.mean == pytest.approx(-0.032), "better, as its losses were lower"


def test_steps_to_a_target_frozen_before_the_seeds_were_trained(rows):
    """AdamW ended its tuning at 2.0: the target is 2.02 for every seed of every optimizer."""
    assert rows["adamw"].tuned.reach.steps == (30, 30, 30, 30, 30)
    assert rows["fadam"].tuned.reach.steps == (30, 30, 30, 30, None)
    assert rows["fadam"].tuned.reach.median == 30
    assert rows["fadam"].drop_in.reach.steps == (40,) * 5
    assert rows["sgd"].tuned.reach.median is None


def test_fresh_seeds_cannot_move_the_target():
    better = [(record("adamw", 0.2, seed, [1.0, 0.5, 0.2, 0.1]), 0.1) for seed in SEEDS]
    others = [pair for pair in fresh() if pair[0].trial.optimizer != "adamw"]
    rows = summarise(SPEC, results(better + others), CHOICES, TRACKS, {})
    assert rows[1].tuned.reach.steps == (30, 30, 30, 30, None)


def test_a_seed_that_never_gets_there_counts_as_infinite():
    assert Reach((10, None, None)).median is None
    assert Reach((10, 20, None)).median == 20
    assert Reach((10, 20)).median == 15


def test_a_diverged_seed_is_counted_and_takes_the_mean_with_it(rows):
    sgd = rows["sgd"].tuned
    assert sgd.diverged == 1
    assert sgd.validation is sgd.test is sgd.difference is None
    assert (rows["sgd"].trials, rows["sgd"].diverged) == (3, 1)


def test_loss_at_equal_time_is_between_two_evaluations(rows):
    """FAdam's step takes 60 ms where AdamW's takes 50: after 40 steps of AdamW FAdam has done 33 1/3."""
    assert rows["adamw"].tuned.at_equal_time == pytest.approx(rows["adamw"].tuned.validation.mean)
    between = 2.0 + (33.333 - 30) / 10 * (1.8 - 2.0)
    assert rows["fadam"].tuned.at_equal_time == pytest.approx((4 * between + 2.7) / 5, abs=1e-4)


@pytest.mark.parametrize(("step", "loss"), [(5, 3.0), (10, 3.0), (15, 2.7), (40, 2.1), (60, 2.1)])
def test_losses_between_evaluations_lie_on_straight_lines(step, loss):
    assert loss_at(step, record("adamw", 1.0, 0, [3.0, 2.4, 2.2, 2.1])) == pytest.approx(loss)


def test_an_optimizer_that_always_diverges_has_no_result():
    lrs = {"adamw": (0.1, 0.2, 0.4), "sgd": (1.0, 2.0)}
    wanted = spec(lrs, most_lrs=3)
    records = {trial: one for trial, one in RECORDS.items() if trial.optimizer == "adamw"}
    for lr in (0.5, 1.0, 2.0):
        one = record("sgd", lr, 0, None)
        records[one.trial] = one
    choices = tune(wanted, records).choices
    found = {trial: Result(one, None) for trial, one in records.items()}
    row = summarise(wanted, found, choices, reported(wanted, choices), {})[1]
    assert (row.tuned, row.drop_in, row.works) == (None, None, None)


def test_where_an_optimizer_works(rows):
    """Within 5 % of its best, unbroken: 1.65 is within 5 % of 1.6, 1.9 is not."""
    assert rows["fadam"].works == (0.2, 0.4)
    assert rows["adamw"].works == (0.1, 0.2)
    assert rows["sgd"].works == (1.0, 2.0)


def test_edges_of_the_grid(rows):
    assert {name: row.edge for name, row in rows.items()} == {"adamw": None, "fadam": "highest", "sgd": None}


def test_costs(rows):
    assert {name: row.state_bytes_per_parameter for name, row in rows.items()} == {"adamw": 8, "fadam": 8, "sgd": 4}
    assert rows["fadam"].step_time is STEP_TIMES["fadam"]
