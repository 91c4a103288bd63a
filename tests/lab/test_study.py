import io

import pytest
from rich.console import Console
from tests.lab.records import record, spec

from fisheropt_lab.errors import LabError
from fisheropt_lab.progress import LineProgress
from fisheropt_lab.record import HeldOut
from fisheropt_lab.run_folder import RunFolder
from fisheropt_lab.study import run_study
from fisheropt_lab.sweeps.job import Result


class Answering:
    """An executor that does not train: it answers with losses."""

    def __init__(self, loss):
        self.loss, self.ran = loss, []

    def run(self, jobs, told):
        for job in jobs:
            self.ran.append(job)
            loss = self.loss(job.trial)
            one = record(job.trial.optimizer, job.trial.lr, job.trial.seed, None if loss is None else [loss] * 4)
            one.trial = job.trial
            yield Result(one, HeldOut(loss) if job.tested and loss is not None else None)


def study_of(tmp_path, monkeypatch, loss, wanted):
    monkeypatch.setattr("fisheropt_lab.study.compile_ahead", lambda *_: 0.0)
    monkeypatch.setattr("fisheropt_lab.study.measure_step_times", lambda *_: {})
    folder = RunFolder(tmp_path / "run")
    manifest = {"spec": wanted.to_json(), "environment": ENVIRONMENT, "task_protocol": [], "command": ""}
    folder.start(manifest, resume=False)
    executor = Answering(loss)
    run_study(None, wanted, folder, executor, LineProgress(Console(file=io.StringIO())))
    return folder, executor


ENVIRONMENT = {
    "versions": {"python": "3.11"},
    "hardware": {"cpu": "A CPU", "cores": 2, "threads": 2, "device": "cpu", "system": "A System"},
    "git_commit": None,
}
WANTED = spec({"adamw": (1.0, 2.0, 4.0), "fadam": (1.0, 2.0, 4.0)}, most_lrs=6, knob_values=1)


def test_the_order_of_things(tmp_path, monkeypatch):
    """Tuning on its own seed and without the test split; then everything is frozen; then fresh seeds, each tested."""
    folder, executor = study_of(tmp_path, monkeypatch, lambda trial: 2 + abs(trial.lr - 2) + 0.01 * trial.seed, WANTED)
    tested = [job.tested for job in executor.ran]
    assert tested == sorted(tested), "no tuning after the first look at the test split"
    assert {job.trial.seed for job in executor.ran if not job.tested} == {0}
    assert {job.trial.seed for job in executor.ran if job.tested} == {1, 2, 3, 4, 5}
    assert len({job.trial for job in executor.ran}) == len(executor.ran), "nothing is trained twice"
    frozen = folder.store.about("frozen")
    assert frozen["choices"]["fadam"] == {"lr": 2.0, "knobs": {}}
    assert frozen["target"] == 2.0
    assert folder.report.exists()


def test_a_tuned_baseline_that_does_worse_than_untuned_stops_the_comparison(tmp_path, monkeypatch):
    def loss(trial):
        if trial.seed == 0:
            return 2 + abs(trial.lr - 1)  # the tuning seed likes 1, the grid began at 2
        return 2 + abs(trial.lr - 2) + 0.01 * trial.seed * trial.lr

    with pytest.raises(LabError, match=r"the comparison stops: AdamW, tuned, ends 0\.\d+ higher than at the settings"):
        study_of(tmp_path, monkeypatch, loss, WANTED)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_tuned_baseline_that_diverges_stops_the_comparison(tmp_path, monkeypatch):
    def loss(trial):
        if trial.seed == 0:
            return 10 - trial.lr
        return None if trial.lr > 4 and trial.seed == 3 else 2.0

    with pytest.raises(LabError, match="the comparison stops: AdamW, tuned, diverges"):
        study_of(tmp_path, monkeypatch, loss, WANTED)


def test_a_baseline_that_always_diverges_stops_the_comparison(tmp_path, monkeypatch):
    with pytest.raises(LabError, match="every trial of AdamW diverged"):
        study_of(tmp_path, monkeypatch, lambda trial: None if trial.optimizer == "adamw" else 1.0, WANTED)
