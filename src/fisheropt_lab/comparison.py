"""The whole comparison: search learning rates, repeat the best on more seeds, test once, time the steps, report.

Whatever is on disk is not done again, so that starting over after an interruption is the same as going on.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import torch

from fisheropt_lab.files import load_tensors, save_tensors, write_json
from fisheropt_lab.outcome import Outcome, load_outcome
from fisheropt_lab.progress import Progress
from fisheropt_lab.report import write_reports
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.selection import best_lrs, leader
from fisheropt_lab.spec import Spec, Trial
from fisheropt_lab.tasks import Task
from fisheropt_lab.timing import compile_ahead, measure_step_times
from fisheropt_lab.training import Checkpoints, run_trial


def run_comparison(
    task: Task, spec: Spec, folder: RunFolder, progress: Progress, checkpoint_seconds: float = 15.0
) -> Outcome:
    """Do what is left to do of a comparison and write its reports. The folder was claimed with `RunFolder.start`."""
    search = spec.search_trials()
    progress.begin(trials=len(search) + len(spec.optimizers) * (len(spec.seeds) - 1), steps=spec.steps)

    progress.phase("one step of each optimizer, so that no trial pays for compilation")
    first_step_seconds = {name: compile_ahead(task, spec, name) for name in spec.optimizers}

    progress.phase(f"learning-rate search, seed {spec.seeds[0]}")
    for trial in search:
        _train(task, spec, trial, folder, progress, checkpoint_seconds)
        _forget_losers(folder, [t for t in search if t.optimizer == trial.optimizer])
    chosen = best_lrs(spec, folder.records(search))

    repeats = spec.repeat_trials(chosen)
    if repeats:
        progress.phase(f"best learning rates, seeds {', '.join(map(str, spec.seeds[1:]))}")
    for trial in repeats:
        _train(task, spec, trial, folder, progress, checkpoint_seconds)

    progress.phase("test split")
    selected = [Trial(name, lr, spec.seeds[0]) for name, lr in chosen.items()] + repeats
    for trial in selected:
        _test(task, spec, trial, folder)

    if not folder.timing.exists():
        progress.phase("step times, optimizers taking turns")
        step_times = measure_step_times(task, spec)
        write_json(
            folder.timing,
            {
                "step_times": {name: asdict(value) for name, value in step_times.items()},
                "first_step_seconds": first_step_seconds,
                "finished": timestamp(),
            },
        )
    outcome = load_outcome(folder)
    write_reports(outcome, folder)
    return outcome


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _train(
    task: Task, spec: Spec, trial: Trial, folder: RunFolder, progress: Progress, checkpoint_seconds: float
) -> None:
    """Run a trial unless it is on disk. Its JSON file is written last: it says that the trial is done."""
    found = folder.record(trial)
    if found is not None:
        progress.trial_found(found)
        return
    progress.trial_started(trial)
    checkpoints = Checkpoints(folder.checkpoint(trial), checkpoint_seconds)
    record, model = run_trial(task, spec, trial, checkpoints, progress.step)
    record.finished = timestamp()
    if record.validation_loss is not None:
        save_tensors(folder.weights(trial), model.state_dict())
    write_json(folder.trial(trial), record.to_json())
    folder.checkpoint(trial).unlink(missing_ok=True)
    progress.trial_finished(record)


def _forget_losers(folder: RunFolder, trials: list[Trial]) -> None:
    """Delete the weights of trials that another trial of the same optimizer has beaten: only the best is tested."""
    records = folder.records(trials)
    best = leader(records)
    for record in records:
        if record is not best:
            folder.weights(record.trial).unlink(missing_ok=True)


def _test(task: Task, spec: Spec, trial: Trial, folder: RunFolder) -> None:
    """Ask the test split about a chosen trial, once; a trial that diverged has nothing to ask about."""
    weights = folder.weights(trial)
    if not folder.test(trial).exists() and weights.exists():
        device = torch.device(spec.device)
        model = task.model(trial.seed).to(device)
        model.load_state_dict(load_tensors(weights))
        write_json(
            folder.test(trial),
            {"test_loss": task.evaluate(model, "test", device), "metrics": task.metrics(model, "test", device)},
        )
    weights.unlink(missing_ok=True)
