"""Tuning as a pure function: an imagined optimizer answers, and what is asked of it is looked at."""

import math
from dataclasses import replace

import pytest
from tests.lab.records import SPEC, record, spec

from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.record import Record
from fisheropt_lab.spec import Entry
from fisheropt_lab.tuning import least_trials, tune


def answered(wanted, loss, most_rounds=50):
    """Tune to the end; `loss(trial)` is the validation loss, None for a divergence. Records, and the choices."""
    records = {}
    for _ in range(most_rounds):
        tuning = tune(wanted, records)
        if not tuning.due:
            return records, tuning.choices
        assert len(set(tuning.due)) == len(tuning.due)
        for trial in tuning.due:
            assert trial not in records, "asked twice"
            records[trial] = Record(trial, validation_loss=loss(trial))
    raise AssertionError("tuning does not end")


def parabola(best):
    """Lowest at the learning rate of each optimizer, wider on a logarithmic axis than any grid."""
    return lambda trial: 1 + math.log2(trial.lr / best[trial.optimizer]) ** 2


def lrs_of(records, name):
    return sorted({trial.lr for trial in records if trial.optimizer == name})


def test_a_best_inside_the_grid_ends_the_search():
    wanted = spec({"adamw": (1.0, 2.0, 4.0), "fadam": (1.0, 2.0, 4.0)})
    records, choices = answered(wanted, parabola({"adamw": 2, "fadam": 2}))
    assert len(records) == 6
    assert {key: choice.lr for key, choice in choices.items()} == {"adamw": 2, "fadam": 2}


def test_the_grid_grows_beyond_an_edge_and_every_optimizer_gets_as_many_trials():
    wanted = spec({"adamw": (1.0, 2.0, 4.0), "fadam": (1.0, 2.0, 4.0)}, most_lrs=9)
    records, choices = answered(wanted, parabola({"adamw": 2, "fadam": 16}))
    assert lrs_of(records, "fadam") == [1, 2, 4, 8, 16, 32]
    assert choices["fadam"].lr == 16
    assert choices["fadam"].edge is None
    assert len(lrs_of(records, "adamw")) == 6, "AdamW needs no more, and gets as many"
    assert choices["adamw"].lr == 2
    assert len(choices["adamw"].trials) == len(choices["fadam"].trials) == 6


def test_those_inside_widen_their_curve_on_its_better_side():
    wanted = spec({"adamw": (1.0, 2.0, 4.0), "fadam": (1.0, 2.0, 4.0)}, most_lrs=9)
    records, _ = answered(wanted, parabola({"adamw": 2.2, "fadam": 8}))  # AdamW's curve is lower on the right
    assert lrs_of(records, "fadam") == [1, 2, 4, 8, 16]
    assert lrs_of(records, "adamw") == [0.5, 1, 2, 4, 8]


def test_the_search_ends_at_its_bound_and_says_so():
    records, choices = answered(spec({"fadam": (1.0, 2.0, 4.0)}, most_lrs=5), lambda trial: trial.lr)
    assert lrs_of(records, "fadam") == [0.25, 0.5, 1, 2, 4]
    assert choices["fadam"].edge == "lowest"


def test_a_grid_that_was_asked_for_is_not_extended():
    records, choices = answered(spec({"fadam": (1.0, 2.0)}, most_lrs=2), lambda trial: -trial.lr)
    assert lrs_of(records, "fadam") == [1, 2]
    assert choices["fadam"].edge == "highest"


def test_one_learning_rate_has_no_edge():
    _, choices = answered(spec({"fadam": (1.0,)}), lambda trial: 1.0)
    assert choices["fadam"].edge is None


def test_where_everything_diverges_the_search_goes_down():
    wanted = spec({"adamw": (1.0, 2.0, 4.0)}, most_lrs=9)
    records, choices = answered(wanted, lambda trial: None if trial.lr > 0.3 else trial.lr)
    assert choices["adamw"].lr in lrs_of(records, "adamw")
    assert choices["adamw"].lr < 0.3
    records, choices = answered(wanted, lambda trial: None)
    assert choices == {}
    assert len(records) == 9


def test_of_equal_losses_the_smaller_lr_is_taken():
    _, choices = answered(spec({"adamw": (0.1, 0.2, 0.4)}), lambda trial: 2.0)
    assert choices["adamw"].lr == 0.1


def test_the_knobs_are_turned_one_after_the_other_at_the_best_so_far():
    def loss(trial):
        knobs = dict(trial.options)
        return 1 + abs(trial.lr - 2) + (-0.5 if knobs.get("weight_decay") == 0.1 else 0) + 0.1 * ("beta2" in knobs)

    wanted = spec({"adamw": (1.0, 2.0, 4.0)}, knob_values=2)
    records, choices = answered(wanted, loss)
    assert choices["adamw"].knobs == (("weight_decay", 0.1),)
    turned = [trial for trial in records if trial.options]
    assert all(trial.lr == 2 for trial in turned)
    assert [dict(trial.options) for trial in turned] == [
        {"weight_decay": 0.1},
        {"weight_decay": 0.0},
        {"beta2": 0.99, "weight_decay": 0.1},
        {"beta2": 0.95, "weight_decay": 0.1},
    ]
    assert len(records) == least_trials(wanted) == 7


@pytest.mark.parametrize("first", ["adamw", "sgd", "adafisher", "adafactor-torch"])
def test_every_optimizer_gets_the_same_number_of_trials(first):
    names = [first, *(name for name in CONTENDERS if name != first)]
    wanted = spec(dict.fromkeys(names, (1.0, 2.0, 4.0)), most_lrs=7, knob_values=2)
    _, choices = answered(wanted, lambda trial: 1 + math.log2(trial.lr / (1 + len(trial.optimizer))) ** 2)
    assert len({len(choice.trials) for choice in choices.values()}) == 1


def test_what_an_entry_fixes_is_not_tuned():
    wanted = spec({"fadam": (1.0, 2.0, 4.0)}, knob_values=2)
    fixed = Entry("FAdam", "fadam", (("weight_decay", 0.5),), lrs=(1.0, 2.0, 4.0))
    records, _ = answered(replace(wanted, entries={"fadam": fixed}), parabola({"fadam": 2}))
    assert {dict(trial.options)["weight_decay"] for trial in records} == {0.5}
    assert len(records) == 3 + 2 < least_trials(wanted)


def test_choices_are_the_same_in_whatever_order_trials_finished():
    wanted = spec({"adamw": (1.0, 2.0, 4.0), "fadam": (1.0, 2.0, 4.0)}, most_lrs=6, knob_values=1)
    loss = parabola({"adamw": 3, "fadam": 9})
    records, choices = answered(wanted, loss)
    again = tune(wanted, dict(reversed(records.items())))
    assert (again.due, again.choices) == ((), choices)


def test_trainings_on_other_seeds_cannot_move_the_choice():
    records = {one.trial: one for one in (record("adamw", lr, 0, [2.0 + lr] * 4) for lr in SPEC.entries["adamw"].lrs)}
    lucky = record("adamw", 0.4, 1, [0.1] * 4)
    alone = spec({"adamw": (0.1, 0.2, 0.4)})
    assert tune(alone, records | {lucky.trial: lucky}).choices == tune(alone, records).choices
