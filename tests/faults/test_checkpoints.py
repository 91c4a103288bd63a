"""What can happen to a checkpoint on disk, and what is said of it. Killed processes: benchmarks/fault_drills.py."""

import copy
import json
import os
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from fisheropt import AdaFisher, FAdam
from fisheropt_lab.errors import LabError
from fisheropt_lab.train import checkpoints as module
from fisheropt_lab.train import manifest as manifests
from fisheropt_lab.train.checkpoints import Checkpoints
from fisheropt_lab.train.folder import TrainFolder
from fisheropt_lab.train.manifest import FORMAT, Manifest, require_same_run
from fisheropt_lab.train.plan import Plan
from fisheropt_lab.train.state import read_state, shapes_of, write_state
from fisheropt_lab.train.world import World

ALONE = World(0, 1, torch.device("cpu"))
PLAN = Plan("text", {"size": "tiny"}, {"sha256": "0"}, "fadam", 1e-3, 10, 1, 5, 0, 1.0, "float32")


class Run:
    """A model and an optimizer that have done a step, and their checkpoints."""

    def __init__(self, root, width=4, watches=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
        self.watches = watches
        self.optimizer = AdaFisher(self.model) if watches else FAdam(self.model.parameters(), backend="eager")
        self.checkpoints = Checkpoints(root, 3, ALONE)

    def train(self):
        self.model(torch.randn(5, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, step):
        manifest = Manifest(step, 1.0, PLAN.to_json(), shapes_of(self.model), 1, "none", {})
        return self.checkpoints.save(
            manifest, lambda folder: write_state(folder, self.model, self.optimizer, self.watches, ALONE)
        )

    def restore(self, plan=PLAN):
        found = self.checkpoints.newest(partial(require_same_run, plan=plan, parameters=shapes_of(self.model)))
        if found is None:
            return None
        read_state(found[0], self.model, self.optimizer, self.watches, ALONE)
        return found[1].step

    def numbers(self):
        return copy.deepcopy({"model": self.model.state_dict(), "state": self.optimizer.state_dict()["state"]})


@pytest.fixture
def run(tmp_path):
    """Two checkpoints: of step 1, and of step 2, which is the newest."""
    run = Run(tmp_path)
    for step in (1, 2):
        run.train()
        run.save(step)
    return run


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def newest(run):
    return run.checkpoints.complete()[-1]


def data_file(run):
    (path,) = newest(run).glob("*.distcp")
    return path


@pytest.mark.parametrize("watches", [False, True], ids=["FAdam", "AdaFisher"])
def test_what_was_saved_is_restored_bit_for_bit(tmp_path, watches):
    first, second = Run(tmp_path, watches=watches), Run(tmp_path, watches=watches)
    first.train()
    first.save(1)
    assert second.restore() == 1
    assert same(first.numbers()["model"], second.numbers()["model"])
    for run in (first, second):
        torch.manual_seed(1)
        run.train()  # which needs the state, too
    assert same(first.numbers(), second.numbers())


def test_nothing_to_restore(tmp_path):
    assert Run(tmp_path).restore() is None


class KilledHere(BaseException):
    pass


def killed(*args, **kwargs):
    raise KilledHere


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("torch.distributed.checkpoint.filesystem.FileSystemWriter", "finish"),  # shards are written, no index
        (module, "digest_of"),
        (manifests.Manifest, "to_text"),
        (module, "_force_to_disk"),
        (module.Path, "rename"),
    ],
)
def test_a_process_that_ends_while_it_writes(run, monkeypatch, owner, name):
    """Wherever writing stops, the step before is loaded, and the next checkpoint clears up."""
    expected = run.numbers()
    run.train()
    with monkeypatch.context() as patch:
        if isinstance(owner, str):
            patch.setattr(f"{owner}.{name}", killed)
        else:
            patch.setattr(owner, name, killed)
        with pytest.raises((KilledHere, CheckpointException)):  # torch wraps what happens inside it
            run.save(3)
    assert newest(run).name == "step-00000002"
    assert run.restore() == 2
    assert same(run.numbers(), expected)
    run.save(3)
    assert sorted(path.name for path in run.checkpoints.root.iterdir()) == [f"step-{i:08d}" for i in (1, 2, 3)]


def test_a_truncated_file(run):
    path = data_file(run)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(LabError) as error:
        run.restore()
    assert str(error.value).startswith(f"{path} has {size - 1} bytes, and {size} were written; delete the folder ")


@pytest.mark.parametrize("where", [0, 0.5, 1], ids=["first byte", "middle", "last byte"])
@pytest.mark.parametrize("name", ["data", ".metadata", "checkpoint.json"])
def test_a_single_wrong_bit(run, name, where):
    path = data_file(run) if name == "data" else newest(run) / name
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 2))] ^= 1
    path.write_bytes(content)
    before = run.numbers()
    with pytest.raises(LabError, match="is damaged"):
        run.restore()
    assert same(run.numbers(), before), "something of it was loaded"
    shutil.rmtree(newest(run))  # as the message says
    assert run.restore() == 1


@pytest.mark.parametrize("name", ["data", ".metadata", "checkpoint.json"])
def test_a_missing_file(run, name):
    path = data_file(run) if name == "data" else newest(run) / name
    path.unlink()
    with pytest.raises(LabError, match="is missing; delete the folder"):
        run.restore()


def test_a_checkpoint_of_another_model(run, tmp_path):
    wider = Run(tmp_path, width=8)
    with pytest.raises(LabError, match=r"another model: 0\.weight has shape \(4, 3\) there and \(8, 3\) here"):
        wider.restore()
    deeper = Run(tmp_path)
    deeper.model.append(nn.Linear(2, 2))
    with pytest.raises(LabError, match=r"another model: it has no 3\.weight"):
        deeper.restore()


def test_a_checkpoint_of_another_optimizer(run):
    with pytest.raises(LabError, match=r"a checkpoint of fadam, not of adamw: .* go on with --optimizer fadam"):
        run.restore(replace(PLAN, optimizer="adamw"))


def test_a_checkpoint_of_another_plan(run):
    with pytest.raises(LabError, match=r"another plan.*\(lr was 0.001, now 0.002; seed was 0, now 1\); give the same"):
        run.restore(replace(PLAN, lr=2e-3, seed=1))


@pytest.mark.parametrize("found", [FORMAT - 1, FORMAT + 1, "new"])
def test_a_checkpoint_of_another_version(run, found):
    path = newest(run) / manifests.NAME
    content = json.loads(path.read_text())
    content["format"], content["written_by"]["fisheropt"] = found, "0.0.9"
    path.write_text(json.dumps(content))
    with pytest.raises(LabError) as error:
        run.restore()
    assert str(error.value) == (
        f"{path} has format {found!r}, written by fisheropt 0.0.9, and this version reads format {FORMAT}; "
        "go on with fisheropt 0.0.9, or start a new run"
    )


def test_state_that_this_version_of_an_optimizer_does_not_have(run, tmp_path):
    """A checkpoint that is whole in itself: the optimizer's own names differ."""
    state = {"step": torch.tensor(1), "exp_avg": torch.zeros(4, 3)}
    shutil.rmtree(newest(run))

    class Older(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 1e-3})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p] = {key: value.clone() for key, value in state.items()}

    older = Run(tmp_path)
    older.optimizer = Older(older.model.parameters())
    older.train()
    folder = older.save(2)
    before = run.numbers()
    with pytest.raises(
        LabError, match=r"is whole, but what is in it does not fit this FAdam: Missing key .*; go on with"
    ):
        run.restore()
    assert same(run.numbers(), before)
    assert newest(run) == folder


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    folder = TrainFolder(tmp_path)
    for step in (1, 2, 3):
        folder.append({"step": step, "loss": 1.0})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    assert [line["step"] for line in folder.lines()] == [1, 2, 3]
    folder.rewind(2)
    folder.append({"step": 3, "loss": 2.0})
    assert [(line["step"], line["loss"]) for line in folder.lines()] == [(1, 1.0), (2, 1.0), (3, 2.0)]
