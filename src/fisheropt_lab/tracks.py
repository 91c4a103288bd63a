"""The two tracks of the protocol, on fresh seeds.

*Tuned*: every entry at what its own tuning found. *Drop-in*: the baseline's tuned settings, only the optimizer
replaced; a setting goes along where both optimizers measure it in the same unit. The baseline also runs at the
settings its own tuning began with: a tuned baseline that does worse than those was not tuned.
"""

from __future__ import annotations

from fisheropt_lab.optimizers import contender
from fisheropt_lab.spec import Entry, Settings, Spec, Trial, settings
from fisheropt_lab.tuning import Choice

TUNED, DROP_IN, START = "tuned", "drop-in", "start"
Tracks = dict[str, dict[str, list[Trial]]]  # track -> entry's key -> a trial per reported seed


def reported(spec: Spec, choices: dict[str, Choice]) -> Tracks:
    """Every training run whose numbers are reported. Where two tracks ask for the same run, it runs once."""
    tuned = {
        key: [spec.entries[key].trial(choice.lr, seed, choice.knobs) for seed in spec.seeds]
        for key, choice in choices.items()
    }
    dropped: dict[str, list[Trial]] = {}
    if spec.baseline in choices:
        for key, entry in spec.entries.items():
            found = drop_in(spec, entry, choices)
            if found is not None:
                dropped[key] = [entry.trial(found[0], seed, found[1]) for seed in spec.seeds]
    baseline = spec.entries[spec.baseline]
    middle = baseline.lrs[len(baseline.lrs) // 2]
    start = {spec.baseline: [baseline.trial(middle, seed) for seed in spec.seeds]}
    return {TUNED: tuned, DROP_IN: dropped, START: start}


def drop_in(spec: Spec, entry: Entry, choices: dict[str, Choice]) -> tuple[float, Settings] | None:
    """The learning rate and knobs of an entry that replaces the baseline in the baseline's settings; None where the
    learning rates of the two are not in the same unit. A control runs at its owner's settings instead (SPEC D14)."""
    mine = contender(entry.optimizer)
    for key, owner in spec.entries.items():
        kind = contender(owner.optimizer)
        if kind.control == entry.optimizer and key in choices:
            return kind.control_lr(choices[key].lr), ()
    baseline, choice = contender(spec.entries[spec.baseline].optimizer), choices[spec.baseline]
    if mine.lr_unit != baseline.lr_unit:
        return None
    fixed = dict(entry.options)
    same = {
        name: value
        for name, value in choice.knobs
        if name not in fixed
        and (
            (name == baseline.decays[0] and mine.decay_unit == baseline.decay_unit)
            or (name == baseline.third[0] == mine.third[0])
        )
    }
    return choice.lr, settings(same)


def in_order(tracks: Tracks) -> list[Trial]:
    """Each run once; seed by seed, so that a study stopped early has whole seeds."""
    rows = [trials for track in tracks.values() for trials in track.values()]
    return list(dict.fromkeys(trial for seed in zip(*rows, strict=True) for trial in seed))
