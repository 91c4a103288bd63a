"""A whole study under the protocol: tune, freeze what was chosen, train on fresh seeds, test, time the steps, report.

Whatever is in the store is not done again, so that starting over after an interruption is the same as going on.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fisheropt_lab.clock import timestamp
from fisheropt_lab.errors import LabError
from fisheropt_lab.files import write_json
from fisheropt_lab.intervals import CLAIM_SEEDS, paired
from fisheropt_lab.outcome import Outcome, load_outcome
from fisheropt_lab.progress import Progress
from fisheropt_lab.report import write_reports
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.spec import Spec
from fisheropt_lab.sweeps import Executor, Sweep
from fisheropt_lab.tasks import Task
from fisheropt_lab.timing import compile_ahead, measure_step_times
from fisheropt_lab.tracks import START, TUNED, Tracks, in_order, reported
from fisheropt_lab.tuning import Choice, least_trials, tune


def run_study(
    task: Task,
    spec: Spec,
    folder: RunFolder,
    executor: Executor,
    progress: Progress,
    checkpoint_seconds: float = 15.0,
) -> Outcome:
    """Do what is left to do of a study and write its reports. The folder was claimed with `RunFolder.start`.

    Raises:
        LabError: the baseline could not be tuned; nothing can be said against it then.
    """
    fresh = len(spec.seeds) * (2 * len(spec.entries) + 1)  # at most: two tracks, and where the baseline began
    progress.begin(trials=least_trials(spec) + fresh, steps=spec.steps)
    for record in folder.store.records().values():
        progress.trial_found(record)
    sweep = Sweep(spec, folder.store, folder.checkpoints, executor, progress, checkpoint_seconds)

    progress.phase("one step of each optimizer, so that no trial pays for compilation")
    first_step_seconds = {key: compile_ahead(task, spec, key) for key in spec.entries}

    progress.phase(f"tuning, seed {spec.tuning_seed}")
    choices = _tuned(sweep, spec, folder)
    tracks = reported(spec, choices)
    runs = in_order(tracks)
    progress.begin(trials=len(folder.store.records().keys() | set(runs)), steps=spec.steps)
    if folder.store.about("frozen") is None:
        folder.store.describe("frozen", _frozen(spec, choices))

    progress.phase(f"fresh seeds {', '.join(map(str, spec.seeds))}: the baseline, tuned and where its tuning began")
    sweep.run(in_order({name: {spec.baseline: tracks[name][spec.baseline]} for name in (TUNED, START)}), tested=True)
    _require_tuned_baseline(spec, folder, tracks)

    progress.phase("fresh seeds: all others, tuned and drop-in")
    sweep.run(runs, tested=True)

    if not folder.timing.exists():
        timed = {}
        if spec.study == "compare":
            progress.phase("step times, optimizers taking turns")
            timed = {key: asdict(value) for key, value in measure_step_times(task, spec).items()}
        write_json(
            folder.timing,
            {"step_times": timed, "first_step_seconds": first_step_seconds, "finished": timestamp()},
        )
    outcome = load_outcome(folder)
    write_reports(outcome, folder)
    return outcome


def _tuned(sweep: Sweep, spec: Spec, folder: RunFolder) -> dict[str, Choice]:
    """Tune, round by round, until there is nothing more to try."""
    while True:
        tuning = tune(spec, folder.store.records())
        if not tuning.due:
            break
        sweep.run(tuning.due, tested=False)
    if spec.baseline not in tuning.choices:
        label = spec.entries[spec.baseline].label
        raise LabError(f"every trial of {label} diverged, so there is nothing to compare with; lower --lrs")
    return tuning.choices


def _frozen(spec: Spec, choices: dict[str, Choice]) -> dict[str, Any]:
    """What was settled before the first reported seed was trained."""
    chosen = {key: {"lr": choice.lr, "knobs": dict(choice.knobs)} for key, choice in choices.items()}
    return {"choices": chosen, "target": choices[spec.baseline].loss, "when": timestamp()}


def _require_tuned_baseline(spec: Spec, folder: RunFolder, tracks: Tracks) -> None:
    """Stop if the tuned baseline does worse, on fresh seeds, than the settings its tuning began with."""
    records = folder.store.records()
    losses = [[records[trial].validation_loss for trial in tracks[name][spec.baseline]] for name in (TUNED, START)]
    label = spec.entries[spec.baseline].label
    remedy = "tune it longer (more --lrs, or another middle), or name another baseline first in --optimizers"
    tuned, start = ([loss for loss in one if loss is not None] for one in losses)
    if len(tuned) < len(start):
        raise LabError(f"the comparison stops: {label}, tuned, diverges where its untuned settings do not; {remedy}")
    if len(tuned) == len(start) >= CLAIM_SEEDS:
        difference = paired(tuned, start)
        low, high = difference.interval
        if low > 0:
            raise LabError(
                f"the comparison stops: {label}, tuned, ends {difference.mean:.4g} higher than at the settings its "
                f"tuning began with ([{low:.4g}, {high:.4g}], {difference.seeds} paired seeds); {remedy}"
            )
