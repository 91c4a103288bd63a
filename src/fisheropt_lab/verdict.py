"""What the numbers say, in sentences a reader can hold against them."""

from __future__ import annotations

from dataclasses import dataclass

from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.spec import Spec
from fisheropt_lab.summary import Row


@dataclass(frozen=True)
class Finding:
    """One thing to know about the comparison."""

    headline: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.headline} {self.details}".strip()


def verdict(spec: Spec, rows: list[Row], unit: str) -> list[Finding]:
    """A finding per challenger, then what limits them. `unit` is the loss's own unit."""
    baseline = rows[0]
    findings = [
        Finding(
            _loss(baseline, row, unit),
            " ".join(filter(None, (_reach(baseline, row, spec), _time(baseline, row), _memory(baseline, row)))),
        )
        for row in rows[1:]
        if row.optimizer != CONTENDERS[baseline.optimizer].control  # which the next finding is about
    ]
    findings += [
        Finding(
            _loss(control, row, unit),
            " ".join(filter(None, (_control(control, row), _curvature(row), _time(control, row)))),
        )
        for row in rows
        for control in rows
        if control.optimizer == CONTENDERS[row.optimizer].control
    ]
    findings += [_edge(row) for row in rows if row.edge]
    findings += [
        Finding(f"{row.label}: {row.diverged} of {row.trials} trials diverged.") for row in rows if row.diverged
    ]
    return findings


def _loss(baseline: Row, row: Row, unit: str) -> str:
    """Who ends lower on the test split. A difference is claimed only if the ranges over the seeds do not overlap."""
    if row.test is None or baseline.test is None:
        missing = row if row.test is None else baseline
        return f"{row.label} cannot be compared with {baseline.label}: {missing.label} has no test loss at every seed."
    mine, theirs = row.test, baseline.test
    numbers = (
        f"{mine.mean:.4f} against {theirs.mean:.4f} {unit} on the test split "
        f"({100 * (mine.mean / theirs.mean - 1):+.2f} %)"
    )
    seeds = len(mine.values)
    if seeds == 1:
        return f"{row.label} ends at {numbers}; with one seed there is no spread to tell a difference from chance."
    if mine.high < theirs.low:
        return f"{row.label} beats {baseline.label}: {numbers}, and the ranges over {seeds} seeds do not overlap."
    if theirs.high < mine.low:
        return f"{row.label} loses to {baseline.label}: {numbers}, and the ranges over {seeds} seeds do not overlap."
    return (
        f"No difference seen between {row.label} and {baseline.label}: {numbers}, "
        f"and the ranges over {seeds} seeds overlap."
    )


def _reach(baseline: Row, row: Row, spec: Spec) -> str:
    """Steps to the baseline's best validation loss."""
    if row.reach is None:
        return ""
    goal = f"{baseline.label}'s best validation loss"
    seeds = len(row.reach.steps)
    if row.reach.reached == 0:
        return f"It did not reach {goal} within {spec.steps} steps."
    if row.reach.median is None:
        return f"It reached {goal} in {row.reach.reached} of {seeds} seeds."
    return f"It reached {goal} after {row.reach.median:g} of {spec.steps} steps ({row.reach.reached} of {seeds} seeds)."


def _time(baseline: Row, row: Row) -> str:
    if row.step_time is None or baseline.step_time is None:
        return ""
    ratio = row.step_time.training_ms / baseline.step_time.training_ms
    return f"A training step takes {ratio:.2f} times as long as with {baseline.label}."


def _memory(baseline: Row, row: Row) -> str:
    mine, theirs = row.state_bytes_per_parameter, baseline.state_bytes_per_parameter
    if mine is None or theirs is None:
        return ""
    return f"State: {mine:.2f} bytes per parameter against {theirs:.2f}."


def _control(control: Row, row: Row) -> str:
    """What the control is, and what follows from the comparison with it."""
    what = f"{control.label} is momentum SGD at {row.label}'s learning rates divided by lambda, with as many trials"
    if row.test is None or control.test is None or len(row.test.values) == 1:
        return f"{what}."
    if row.test.high < control.test.low and (control.edge or control.diverged):
        return (
            f"{what}. These do not suit it, so the difference may not be the curvature's: add sgd, with its own grid."
        )
    if row.test.high < control.test.low:
        return f"{what}: here the curvature helps."
    return f"{what}: that the curvature helps is not seen here."


def _curvature(row: Row) -> str:
    near = row.near_damping
    if near is None:
        return ""
    return (
        f"When training ended, F was within 10 % of lambda in {100 * near.of_weights:.1f} % of the weights (median "
        f"over layers: {100 * near.median_layer:.1f} %). There the curvature changes nothing: in these {row.label} is "
        "momentum SGD."
    )


def _edge(row: Row) -> Finding:
    return Finding(
        f"{row.label}'s best learning rate is the {row.edge} of its grid.",
        "A wider grid might have helped it, so read its loss as an upper bound.",
    )
