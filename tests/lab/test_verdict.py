from dataclasses import replace

import pytest
from tests.lab.records import REPEATS, SEARCH, SPEC, STEP_TIMES, TEST_LOSSES, record, spec

from fisheropt_lab.summary import summarise
from fisheropt_lab.verdict import verdict

ROWS = summarise(SPEC, SEARCH + REPEATS, TEST_LOSSES, STEP_TIMES)


def about_fadam(test_losses):
    """The finding on FAdam if its three test losses had been these; AdamW's are 2.0, 2.1 and 2.2."""
    changed = TEST_LOSSES | {f"fadam-lr0.4-seed{seed}": loss for seed, loss in enumerate(test_losses)}
    rows = summarise(SPEC, SEARCH + REPEATS, changed, STEP_TIMES)
    return str(verdict(SPEC, rows, "nats/byte")[0])


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((1.7, 1.8, 1.9), "FAdam beats AdamW: 1.8000 against 2.1000 nats/byte on the test split (-14.29 %), and"),
        ((2.3, 2.4, 2.5), "FAdam loses to AdamW: 2.4000 against 2.1000 nats/byte on the test split (+14.29 %), and"),
        ((1.9, 1.9, 2.05), "No difference seen between FAdam and AdamW: 1.9500 against 2.1000 nats/byte"),
        ((2.0, 2.1, 2.2), "No difference seen between FAdam and AdamW: 2.1000 against 2.1000 nats/byte"),
    ],
)
def test_a_difference_is_claimed_only_if_the_ranges_do_not_overlap(losses, sentence):
    assert about_fadam(losses).startswith(sentence)


def test_one_seed_shows_no_difference():
    one = spec({name: (row.best_lr,) for name, row in zip(SPEC.optimizers, ROWS, strict=True)}, seeds=(0,))
    rows = summarise(one, [SEARCH[1], SEARCH[5], SEARCH[7]], TEST_LOSSES, {})
    paragraph = str(verdict(one, rows, "nats/byte")[0])
    assert "with one seed there is no spread" in paragraph
    assert "beats" not in paragraph


def test_speed_and_cost():
    paragraph = about_fadam((1.7, 1.8, 1.9))
    assert "after 30 of 40 steps (2 of 3 seeds)." in paragraph
    assert "takes 1.10 times as long as with AdamW." in paragraph
    assert "State: 8.00 bytes per parameter against 8.00." in paragraph


def test_what_cannot_be_compared_is_said():
    sgd, edge, diverged = map(str, verdict(SPEC, ROWS, "nats/byte")[1:])
    assert sgd.startswith("SGD cannot be compared with AdamW: SGD has no test loss at every seed. It did not reach")
    assert edge.startswith("FAdam's best learning rate is the highest of its grid. A wider grid might have helped")
    assert diverged == "SGD: 2 of 5 trials diverged."


def test_a_baseline_that_diverged_is_said():
    diverged = [record("adamw", lr, 0, None) for lr in SPEC.lrs["adamw"]]
    rows = summarise(SPEC, diverged + SEARCH[3:] + REPEATS[1:2], TEST_LOSSES, STEP_TIMES)
    assert verdict(SPEC, rows, "nats/byte")[0].headline == (
        "FAdam cannot be compared with AdamW: AdamW has no test loss at every seed."
    )


def test_a_slower_step_is_not_hidden():
    slow = [replace(row, step_time=replace(row.step_time, training_ms=500.0)) for row in ROWS[1:2]]
    assert "takes 10.00 times as long" in verdict(SPEC, [ROWS[0], *slow], "nats/byte")[0].details
