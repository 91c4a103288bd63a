"""Tuning under an equal budget: which trainings come next, as a pure function of those that are done.

Every entry gets the same number of trials, in rounds. First the learning rate, on a grid of factor two: as long as
the best of any entry lies at an edge of its grid, every entry gets one learning rate more. An entry at an edge goes on
beyond it; the others widen their curve, which shows where they still work. Then, at the best learning rate, the weight
decay; then, at the best of both, beta2 (or the momentum, where there is no beta2). Nothing but validation losses of
the tuning seed enters, so that going on after an interruption makes the same choices again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fisheropt_lab.optimizers import contender
from fisheropt_lab.record import Record
from fisheropt_lab.spec import GRID_FACTOR, Entry, Settings, Spec, Trial, rounded

Records = Mapping[Trial, Record]


@dataclass(frozen=True)
class Choice:
    """What tuning found for an entry, and what it looked at."""

    lr: float
    knobs: Settings  # weight decay and beta2, where another value than the entry's own was better
    lrs: tuple[float, ...]  # tried, ascending
    trials: tuple[Trial, ...]  # all of them
    edge: str | None  # "lowest" or "highest" where the best learning rate is still at an edge
    loss: float  # validation, on the tuning seed


@dataclass(frozen=True)
class Tuning:
    """Where tuning stands: trials still to be run, or, when there are none, a choice per entry. An entry all of whose
    trials diverged has none."""

    due: tuple[Trial, ...]
    choices: dict[str, Choice]


def tune(spec: Spec, records: Records) -> Tuning:
    """What is to be trained next, or what was chosen."""
    grids = {key: entry.lrs for key, entry in spec.entries.items()}
    while True:
        due = [t for row in _in_turns(spec, grids) for t in row if t not in records]
        if due:
            return Tuning(tuple(due), {})
        widest = max(map(len, grids.values()))
        if widest >= spec.most_lrs or not any(_edge(spec, key, lrs, records) for key, lrs in grids.items()):
            break
        grids = {key: _wider(spec, key, lrs, records) for key, lrs in grids.items()}
    tried = {key: lr_trials(spec, key, lrs) for key, lrs in grids.items()}
    found = {key: _best_lr(spec, key, lrs, records) for key, lrs in grids.items()}
    best = {key: record.trial for key, record in found.items() if record is not None}
    for knob in ("decays", "third"):
        wanted = {key: _turned(spec, spec.entries[key], trial, knob) for key, trial in best.items()}
        due = [trial for trials in wanted.values() for trial in trials if trial not in records]
        if due:
            return Tuning(tuple(due), {})
        for key, trials in wanted.items():
            tried[key] += trials
            best[key] = _leader([best[key], *trials], records)
    return Tuning((), {key: _choice(spec, key, trial, grids[key], tried[key], records) for key, trial in best.items()})


def least_trials(spec: Spec) -> int:
    """How many trainings tuning takes if no grid has to grow."""
    return sum(len(entry.lrs) + len(_knob_values(spec, entry)) for entry in spec.entries.values())


def lr_trials(spec: Spec, key: str, lrs: tuple[float, ...]) -> list[Trial]:
    """The trainings of the learning-rate search."""
    return [spec.entries[key].trial(lr, spec.tuning_seed) for lr in lrs]


def _in_turns(spec: Spec, grids: dict[str, tuple[float, ...]]) -> list[list[Trial]]:
    """The entries take turns, so that a machine that slows down for a while slows all of them."""
    columns = [lr_trials(spec, key, lrs) for key, lrs in grids.items()]
    longest = max(map(len, columns))
    return [[column[i] for column in columns if i < len(column)] for i in range(longest)]


def _loss(trial: Trial, records: Records) -> float:
    loss = records[trial].validation_loss
    return float("inf") if loss is None else loss


def _best_lr(spec: Spec, key: str, lrs: tuple[float, ...], records: Records) -> Record | None:
    """The lowest final validation loss; the smaller learning rate of two equals, None if all diverged."""
    done = [records[trial] for trial in lr_trials(spec, key, lrs)]
    finished = [record for record in done if record.validation_loss is not None]
    return min(finished, key=lambda record: (record.validation_loss, record.trial.lr), default=None)


def _edge(spec: Spec, key: str, lrs: tuple[float, ...], records: Records) -> str | None:
    """The end of the grid the best learning rate lies at; where all diverged, the lower one: it is the way to go."""
    best = _best_lr(spec, key, lrs, records)
    if best is None or best.trial.lr == lrs[0]:
        return "lowest"
    return "highest" if best.trial.lr == lrs[-1] else None


def _wider(spec: Spec, key: str, lrs: tuple[float, ...], records: Records) -> tuple[float, ...]:
    """One learning rate more: beyond the edge the best lies at, or beyond the better of the two ends."""
    low, high = (_loss(spec.entries[key].trial(lr, spec.tuning_seed), records) for lr in (lrs[0], lrs[-1]))
    edge = _edge(spec, key, lrs, records) or ("lowest" if low <= high else "highest")
    if edge == "lowest":
        return (rounded(lrs[0] / GRID_FACTOR), *lrs)
    return (*lrs, rounded(lrs[-1] * GRID_FACTOR))


def _knob_values(spec: Spec, entry: Entry) -> list[tuple[str, float]]:
    kind = contender(entry.optimizer)
    return [(name, value) for name, values in (kind.decays, kind.third) for value in values[: spec.knob_values]]


def _turned(spec: Spec, entry: Entry, at: Trial, knob: str) -> list[Trial]:
    """The trial with other values of one knob. An entry that fixes the knob keeps it."""
    name, values = getattr(contender(entry.optimizer), knob)
    if name in dict(entry.options):
        return []
    return [entry.trial(at.lr, at.seed, (*at.options, (name, value))) for value in values[: spec.knob_values]]


def _leader(trials: list[Trial], records: Records) -> Trial:
    """The best; of equals the first, which has fewer settings changed."""
    return min(trials, key=lambda trial: _loss(trial, records))


def _choice(spec: Spec, key: str, best: Trial, lrs: tuple[float, ...], tried: list[Trial], records: Records) -> Choice:
    knobs = tuple(pair for pair in best.options if pair not in spec.entries[key].options)
    edge = _edge(spec, key, lrs, records) if len(lrs) > 1 else None
    return Choice(best.lr, knobs, lrs, tuple(tried), edge, _loss(best, records))
