"""What the numbers say, in sentences a reader can hold against them."""

from __future__ import annotations

from fisheropt_lab.spec import Spec
from fisheropt_lab.summary import Row


def verdict(spec: Spec, rows: list[Row], unit: str) -> list[str]:
    """A paragraph per challenger, and one on the limits of the run. `unit` is the loss's own unit."""
    baseline = rows[0]
    paragraphs = [_against(baseline, row, spec, unit) for row in rows[1:]]
    caveats = [_edge(row) for row in rows if row.edge]
    caveats += [f"{row.label}: {row.diverged} of {row.trials} trials diverged." for row in rows if row.diverged]
    if caveats:
        paragraphs.append(" ".join(caveats))
    return paragraphs


def _against(baseline: Row, row: Row, spec: Spec, unit: str) -> str:
    return " ".join(filter(None, (_loss(baseline, row, unit), _speed(baseline, row, spec), _cost(baseline, row))))


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


def _speed(baseline: Row, row: Row, spec: Spec) -> str:
    """Steps to the baseline's best validation loss."""
    if row.reach is None:
        return ""
    goal = f"{baseline.label}'s best validation loss"
    seeds = len(row.reach.steps)
    if row.reach.reached == 0:
        return f"It did not reach {goal} within {spec.steps} steps."
    if row.reach.median is None:
        return f"It reached {goal} in {row.reach.reached} of {seeds} seeds."
    return (
        f"It reached {goal} after {row.reach.median:g} of {spec.steps} steps "
        f"(median over seeds, {row.reach.reached} of {seeds} got there; looked at every {spec.eval_every} steps)."
    )


def _cost(baseline: Row, row: Row) -> str:
    """Time and memory per step."""
    sentence = ""
    if row.step_time and baseline.step_time:
        sentence = (
            f"A training step takes {row.step_time.training_ms / baseline.step_time.training_ms:.2f} times as long "
            f"({row.step_time.optimizer_ms:.2f} ms against {baseline.step_time.optimizer_ms:.2f} ms in the optimizer)"
        )
    if sentence and row.state_bytes_per_parameter is not None and baseline.state_bytes_per_parameter is not None:
        return (
            f"{sentence}; the optimizer keeps {row.state_bytes_per_parameter:.2f} bytes per parameter "
            f"against {baseline.state_bytes_per_parameter:.2f}."
        )
    return sentence and sentence + "."


def _edge(row: Row) -> str:
    return (
        f"{row.label}'s best learning rate is the {row.edge} of its grid: a wider grid might have helped it, "
        f"so read its loss as an upper bound."
    )
