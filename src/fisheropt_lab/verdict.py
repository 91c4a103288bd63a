"""What the numbers say, in sentences a reader can hold against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fisheropt_lab.intervals import CLAIM_SEEDS, Paired, paired
from fisheropt_lab.optimizers import contender
from fisheropt_lab.spec import Spec
from fisheropt_lab.summary import Row, Track


@dataclass(frozen=True)
class Judge:
    """What the entries are held against one another by: the loss, or one of the task's metrics."""

    name: str  # "test loss", or the metric's name
    unit: str
    factor: float = 1.0  # from what is measured to the unit
    digits: int = 4
    higher_is_better: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing to know about the study."""

    headline: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.headline} {self.details}".strip()


def verdict(spec: Spec, rows: list[Row], judge: Judge) -> list[Finding]:
    """A finding per optimizer and the baseline, or two for all arms of an ablation; then what limits them."""
    baseline = rows[0]
    findings = [] if spec.study == "compare" else _arms(spec, rows)
    for row in rows[1:] if spec.study == "compare" else []:
        kind = contender(row.optimizer)
        owners = [owner for owner in rows if contender(owner.optimizer).control == row.optimizer]
        if owners:  # a control is held against its owner, below
            continue
        tracks = [f"Tuned: {compared(row, baseline, row.tuned, judge)}", f"Drop-in: {_dropped(row, baseline, judge)}"]
        costs = [_reach(baseline, row, spec, judge), _time(baseline, row), _memory(baseline, row)]
        findings.append(Finding(" ".join(tracks), " ".join(filter(None, costs))))
        if kind.control is not None:
            findings += [_control(control, row, judge) for control in rows if control.optimizer == kind.control]
    if contender(baseline.optimizer).control is not None:
        findings += [
            _control(control, baseline, judge)
            for control in rows
            if control.optimizer == contender(baseline.optimizer).control
        ]
    findings += [_edge(row) for row in rows if row.edge]
    findings += [
        Finding(f"{row.label}: {row.diverged} of {row.trials} trials of its tuning diverged.")
        for row in rows
        if row.diverged
    ]
    return findings


def _arms(spec: Spec, rows: list[Row]) -> list[Finding]:
    """An ablation has many arms: who is better and who is worse; the table has the numbers."""
    first, *others = rows
    return [
        Finding(f"{name}, against {first.label}: {grouped(spec, found)}.")
        for name, found in (
            ("Tuned", {row.label: row.tuned and row.tuned.difference for row in others}),
            ("Drop-in", {row.label: row.drop_in and row.drop_in.difference for row in others}),
        )
    ]


def grouped(spec: Spec, found: Mapping[str, Paired | None]) -> str:
    """Labels by what their differences show, without the full stop. None: there is no difference to take."""
    if len(spec.seeds) < CLAIM_SEEDS:
        return f"{len(spec.seeds)} seeds support no claim"
    groups: dict[str, list[str]] = {"better": [], "no difference seen": [], "worse": [], "diverged or not defined": []}
    for label, one in found.items():
        if one is None:
            groups["diverged or not defined"].append(label)
        elif not one.seen:
            groups["no difference seen"].append(label)
        else:
            groups["better" if one.mean < 0 else "worse"].append(label)
    return "; ".join(f"{name}: {_listed(labels)}" for name, labels in groups.items() if labels)


def _listed(labels: list[str]) -> str:
    """Labels that share their beginning up to a comma, as arms do, name it once: "FAdam, rho 0.3, rho 0.4"."""
    said: list[str] = []
    before = ""
    for label in labels:
        family, comma, rest = label.partition(", ")
        said.append(rest if comma and family == before else label)
        before = family if comma else ""
    return ", ".join(said)


def compared(row: Row, baseline: Row, track: Track | None, judge: Judge) -> str:
    """An entry on one track against the tuned baseline. A difference is claimed if its interval excludes zero."""
    if track is None:
        return f"every trial of {row.label} diverged."
    if track.diverged:
        return f"{row.label} diverged on {track.diverged} of {len(track.trials)} seeds."
    if track.difference is None:
        return f"{baseline.label} diverged on a seed, so {row.label} cannot be held against it."
    return f"{sentence(row.label, baseline.label, track.difference, judge)}."


def sentence(mine: str, theirs: str, difference: Paired, judge: Judge) -> str:
    """One comparison in words and numbers, without the full stop."""
    numbers = interval(difference, judge)
    seeds = difference.seeds
    if seeds < CLAIM_SEEDS:
        return f"{mine} and {theirs} differ by {numbers} in {judge.name}; {seeds} seeds support no claim"
    if difference.seen:
        word = "better" if difference.mean < 0 else "worse"
        return f"{mine} is {word} than {theirs}: {numbers} in {judge.name}, {seeds} paired seeds"
    shown = difference.smallest_shown * judge.factor
    return (
        f"no difference seen between {mine} and {theirs}: {numbers} in {judge.name}, {seeds} paired seeds, which "
        f"would have shown {shown:.{judge.digits}f}"
    )


def interval(difference: Paired, judge: Judge, unit: bool = True) -> str:
    """Mean and 95 % interval in the judge's own unit and direction. `unit`: whether to name it."""
    sign = -1.0 if judge.higher_is_better else 1.0
    low, high = sorted(sign * judge.factor * end for end in difference.interval)
    mean = sign * judge.factor * difference.mean
    number = f"{mean:+.{judge.digits}f}" + (f" {judge.unit}" if unit and judge.unit else "")
    if difference.seeds < 2:
        return f"{number} (one seed)"
    return f"{number} [{low:+.{judge.digits}f}, {high:+.{judge.digits}f}]"


def _dropped(row: Row, baseline: Row, judge: Judge) -> str:
    if row.drop_in is None:
        return f"its learning rate is {contender(row.optimizer).lr_unit}, so it cannot take {baseline.label}'s."
    return compared(row, baseline, row.drop_in, judge)


def _reach(baseline: Row, row: Row, spec: Spec, judge: Judge) -> str:
    """Steps to the tuned baseline's frozen target."""
    if row.tuned is None or spec.judge:
        return ""
    reach, goal = row.tuned.reach, f"{baseline.label}'s target loss"
    seeds = len(reach.steps)
    if reach.reached == 0:
        return f"Tuned, it did not reach {goal} within {spec.steps} steps."
    if reach.median is None:
        return f"Tuned, it reached {goal} in {reach.reached} of {seeds} seeds."
    theirs = baseline.tuned.reach.median if baseline.tuned else None
    beside = "" if theirs is None else f", {baseline.label} after {theirs:g}"
    return f"Tuned, it reached {goal} after {reach.median:g} of {spec.steps} steps ({reach.reached}/{seeds}){beside}."


def _time(baseline: Row, row: Row) -> str:
    if row.step_time is None or baseline.step_time is None:
        return ""
    ratio = row.step_time.training_ms / baseline.step_time.training_ms
    return f"A training step takes {ratio:.2f} times as long as with {baseline.label}."


def _memory(baseline: Row, row: Row) -> str:
    mine, theirs = row.state_bytes_per_parameter, baseline.state_bytes_per_parameter
    if mine is None or theirs is None or mine == theirs:
        return ""
    return f"State: {mine:.2f} bytes per parameter against {theirs:.2f}."


def _control(control: Row, row: Row, judge: Judge) -> Finding:
    """AdaFisher against momentum SGD: at AdaFisher's learning rate over its damping, and at one of its own. Only if it
    beats the second is the curvature of use: a control that is merely at a wrong learning rate shows nothing."""
    what = f"{control.label} is momentum SGD at {row.label}'s learning rate divided by lambda."
    loss = Judge("test loss", judge.unit if judge.name == "test loss" else "")
    said = []
    tuned = _against(row, control, control.tuned)
    for name, difference in (("There", _against(row, control, control.drop_in)), ("Tuned by itself", tuned)):
        if difference is not None:
            said.append(f"{name}: {sentence(row.label, control.label, difference, loss)}.")
    if not said:
        said.append("There is nothing to hold the two against each other by.")
    elif tuned is not None and tuned.seeds >= CLAIM_SEEDS:
        helps = tuned.seen and tuned.mean < 0
        said.append("Here the curvature helps." if helps else "That the curvature helps is not seen here.")
    return Finding(" ".join((what, *said)), _curvature(row))


def _against(row: Row, control: Row, track: Track | None) -> Paired | None:
    if row.tuned is None or row.tuned.test is None or track is None or track.test is None:
        return None
    return paired(row.tuned.test.values, track.test.values)


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
        "A wider grid might have helped it, so its loss is an upper bound.",
    )
