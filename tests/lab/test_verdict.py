from dataclasses import replace

import pytest
from tests.lab.records import ADAMW, CHOICES, RECORDS, SPEC, STEP_TIMES, TRACKS, fresh, record, results, spec

from fisheropt_lab.intervals import paired
from fisheropt_lab.record import HeldOut
from fisheropt_lab.summary import summarise
from fisheropt_lab.sweeps.job import Result
from fisheropt_lab.tracks import reported
from fisheropt_lab.tuning import tune
from fisheropt_lab.verdict import Judge, grouped, interval, verdict

LOSS = Judge("test loss", "nats/byte")


def about_fadam(tuned, dropped=(2.1, 2.0, 2.3, 2.0, 2.1)):
    """The finding on FAdam if its test losses had been these; AdamW's are 2.0, 2.1, 2.2, 2.1, 2.1."""
    rows = summarise(SPEC, results(fresh(tuned, dropped)), CHOICES, TRACKS, STEP_TIMES)
    return str(verdict(SPEC, rows, LOSS)[0])


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((1.7, 1.7, 2.0, 1.8, 1.7), "Tuned: FAdam is better than AdamW: -0.3200 nats/byte [-0.4239, -0.2161] in test"),
        ((2.3, 2.5, 2.4, 2.4, 2.5), "Tuned: FAdam is worse than AdamW: +0.3200 nats/byte [+0.2161, +0.4239] in test"),
        ((2.1, 2.0, 2.3, 2.1, 2.1), "Tuned: no difference seen between FAdam and AdamW: +0.0200 nats/byte [-0.0839, "),
        (ADAMW, "Tuned: no difference seen between FAdam and AdamW: +0.0000 nats/byte"),
    ],
)
def test_a_difference_is_claimed_only_if_its_interval_excludes_zero(losses, sentence):
    assert about_fadam(losses).startswith(sentence)


def test_no_difference_seen_comes_with_what_would_have_been_seen():
    shown = paired((2.1, 2.0, 2.3, 2.0, 2.1), ADAMW).smallest_shown
    assert f"5 paired seeds, which would have shown {shown:.4f}." in about_fadam((2.1, 2.0, 2.3, 2.0, 2.1))


def test_both_tracks_are_always_there():
    finding = about_fadam((1.7, 1.7, 2.0, 1.8, 1.7), dropped=(2.3, 2.5, 2.4, 2.4, 2.5))
    assert "Tuned: FAdam is better than AdamW" in finding
    assert "Drop-in: FAdam is worse than AdamW" in finding
    sgd = str(verdict(SPEC, summarise(SPEC, results(), CHOICES, TRACKS, {}), LOSS)[1])
    assert "Tuned: SGD diverged on 1 of 5 seeds." in sgd
    assert "Drop-in: its learning rate is a multiple of the gradient, so it cannot take AdamW's." in sgd


def test_few_seeds_support_no_claim():
    few = spec({name: entry.lrs for name, entry in SPEC.entries.items()}, seeds=(1, 2, 3))
    choices = tune(few, RECORDS).choices
    rows = summarise(few, results(), choices, reported(few, choices), {})
    finding = str(verdict(few, rows, LOSS)[0])
    assert "3 seeds support no claim" in finding
    assert "better" not in finding


def test_speed_and_cost():
    finding = about_fadam((1.7, 1.7, 2.0, 1.8, 1.7))
    assert "Tuned, it reached AdamW's target loss after 30 of 40 steps (4/5), AdamW after 30." in finding
    assert "takes 1.20 times as long as with AdamW." in finding


def test_what_limits_the_findings_is_said():
    *_, edge, diverged = map(str, verdict(SPEC, summarise(SPEC, results(), CHOICES, TRACKS, STEP_TIMES), LOSS))
    assert edge.startswith("FAdam's best learning rate is the highest of its grid. A wider grid might have helped")
    assert diverged == "SGD: 1 of 3 trials of its tuning diverged."


def test_a_baseline_that_diverged_is_said():
    mine = [(one, test) for one, test in fresh() if one.trial.optimizer != "adamw"]
    theirs = [(replace(one, validation_loss=None), None) for one, _ in fresh() if one.trial.optimizer == "adamw"]
    rows = summarise(SPEC, results(mine + theirs), CHOICES, TRACKS, {})
    assert "AdamW diverged on a seed, so FAdam cannot be held against it." in str(verdict(SPEC, rows, LOSS)[0])


def test_an_accuracy_is_quoted_in_its_own_direction():
    judge = Judge("accuracy", "%", 100.0, 1, higher_is_better=True)
    better = paired((0.90, 0.91, 0.90, 0.92, 0.91), (0.94, 0.95, 0.94, 0.96, 0.95))  # theirs minus mine: below zero
    assert interval(better, judge) == "+4.0 % [+4.0, +4.0]"


def adafisher_and_control(mine, dropped, tuned):
    """Findings where AdaFisher, its control at its learning rate, and the control tuned by itself had these losses."""
    seeds = (1, 2, 3, 4, 5)
    lrs = {"adafisher": (0.01,), "sgd-control": (10.0, 20.0)}
    wanted = spec(lrs, most_lrs=2)
    search = [record("adafisher", 0.01, 0, [1.0] * 4)]
    search += [record("sgd-control", 10.0, 0, [3.0] * 4), record("sgd-control", 20.0, 0, [2.0] * 4)]
    found = {one.trial: Result(one, None) for one in search}
    for name, lr, losses in (("adafisher", 0.01, mine), ("sgd-control", 10.0, dropped), ("sgd-control", 20.0, tuned)):
        for seed, loss in zip(seeds, losses, strict=True):
            one = record(name, lr, seed, [loss] * 4)
            found[one.trial] = Result(one, HeldOut(loss))
    choices = tune(wanted, {trial: result.record for trial, result in found.items()}).choices
    rows = summarise(wanted, found, choices, reported(wanted, choices), {})
    return str(verdict(wanted, rows, LOSS)[0])


def test_the_curvature_helps_only_if_it_beats_the_control_tuned_by_itself():
    mine, worse, better = (1.0, 1.1, 0.9, 1.0, 1.05), (2.0, 2.1, 2.0, 2.2, 2.1), (0.5, 0.6, 0.5, 0.5, 0.6)
    wrong_lr = adafisher_and_control(mine, worse, better)
    assert "There: adafisher is better than sgd-control" in wrong_lr
    assert "Tuned by itself: adafisher is worse than sgd-control" in wrong_lr
    assert "That the curvature helps is not seen here." in wrong_lr
    assert "Here the curvature helps." in adafisher_and_control(mine, worse, worse)


def test_the_arms_of_an_ablation_are_grouped():
    better, worse, none = ((sign * 1.0, sign * 1.1, sign * 0.9, sign * 1.0, sign * 1.05) for sign in (-1, 1, 0))
    found = {"FAdam, rho 0.3": paired(worse, none), "FAdam, rho 0.4": paired(worse, none)}
    found |= {"FAdam, rho 1": paired(better, none), "Adam": paired((1.0, -1.0, 1.0, -1.0, 0.0), none), "SGD": None}
    assert grouped(SPEC, found) == (
        "better: FAdam, rho 1; no difference seen: Adam; worse: FAdam, rho 0.3, rho 0.4; diverged or not defined: SGD"
    )
    assert grouped(spec({"adamw": (1.0,)}, seeds=(1, 2)), found) == "2 seeds support no claim"
