import gc
import io

import pytest
from rich.console import Console
from tests.lab.small import digits_spec

from fisheropt_lab.errors import LabError
from fisheropt_lab.progress import LineProgress
from fisheropt_lab.spec import Trial
from fisheropt_lab.sweeps import Job, Store, Sweep, run_job
from fisheropt_lab.sweeps.job import SplitError
from fisheropt_lab.sweeps.local import InTurn, Processes, Stopped
from fisheropt_lab.sweeps.slurm import Submitit

SPEC = digits_spec({"adamw": (0.01, 0.02), "fadam": (0.01, 0.02)})
TRIALS = [Trial(name, lr, 1) for name in ("adamw", "fadam") for lr in (0.01, 0.02)]


def sweep_in(folder, executor):
    store = Store(folder / "sweep.sqlite")
    store.create()
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Sweep(SPEC, store, folder / "checkpoints", executor, LineProgress(Console(file=io.StringIO())))


def losses(store):
    return {trial: (one.record.train_loss, one.tested) for trial, one in store.results().items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the trainings give, one after the other in this process."""
    sweep = sweep_in(tmp_path_factory.mktemp("expected"), InTurn())
    sweep.run(TRIALS, tested=True)
    return losses(sweep.store)


def test_the_test_split_is_asked_if_and_only_if_a_training_is_reported(tmp_path, expected):
    assert all(tested is not None and 0 <= tested.metrics["accuracy"] <= 1 for _, tested in expected.values())
    sweep = sweep_in(tmp_path, InTurn())
    tuning = Trial("adamw", 0.01, 0)
    sweep.run([tuning], tested=False)
    assert sweep.store.results()[tuning].tested is None


@pytest.mark.parametrize("seed", [0, 7])  # the tuning seed, and one that nobody reports
def test_nobody_looks_at_the_test_split_with_another_seed(tmp_path, seed):
    job = Job(SPEC.to_json(), Trial("adamw", 0.01, seed), True, tmp_path / "c.pt")
    with pytest.raises(SplitError, match="is for the reported seeds"):
        run_job(job)


class Stopping(InTurn):
    """Ctrl-C after so many trainings."""

    def __init__(self, after):
        self.after, self.ran = after, []

    def run(self, jobs, told):
        for result in super().run(jobs, told):
            if len(self.ran) == self.after:
                raise KeyboardInterrupt
            self.ran.append(result.record.trial)
            yield result


def test_an_interruption_loses_what_was_running_and_no_more(tmp_path, expected):
    first = Stopping(after=2)
    with pytest.raises(KeyboardInterrupt):
        sweep_in(tmp_path, first).run(TRIALS, tested=True)
    second = Stopping(after=99)
    sweep = sweep_in(tmp_path, second)
    sweep.run(TRIALS, tested=True)
    assert first.ran == TRIALS[:2]
    assert second.ran == TRIALS[2:]
    assert losses(sweep.store) == expected


def test_processes_give_the_same_bits_and_stop_when_told(tmp_path, expected):
    told = []
    with Processes(2) as pool:
        sweep = sweep_in(tmp_path, pool)
        sweep.progress.step = lambda *what: told.append(what)
        sweep.run(TRIALS, tested=True)
        assert losses(sweep.store) == expected
        assert {trial for trial, _, _ in told} <= {trial.id for trial in TRIALS}
        assert told, "the first step of every training is told"
        long = digits_spec({"adamw": (0.01,)}, steps=10**7).to_json()
        running = pool.run([Job(long, TRIALS[0], False, tmp_path / "c.pt")], lambda *what: pool.stop.set())
        with pytest.raises(Stopped):
            next(running)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_submitit_runs_the_same_specification(tmp_path, expected):
    """By its executor that needs no cluster, which leaves its log files open."""
    with Submitit(tmp_path / "jobs", {"timeout_min": 5}, cluster="debug") as executor:
        sweep = sweep_in(tmp_path, executor)
        sweep.run(TRIALS, tested=True)
    gc.collect()  # the files are closed here, where this is known, not in the middle of another test
    assert losses(sweep.store) == expected


def test_a_parameter_that_submitit_does_not_know(tmp_path):
    with pytest.raises(LabError, match="submitit: "):
        Submitit(tmp_path, {"slurm_party": "gpu"}, cluster="slurm")
