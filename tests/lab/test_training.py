import json
from dataclasses import replace

import pytest
import torch
from tests.lab.small import small_spec, small_task

from fisheropt_lab.files import read_json, write_json
from fisheropt_lab.optimizers import CONTENDERS
from fisheropt_lab.record import Record
from fisheropt_lab.spec import Trial
from fisheropt_lab.training import Checkpoints, run_trial


def ignore(done, loss, lr):
    pass


@pytest.fixture
def task(tmp_path):
    return small_task(tmp_path)


@pytest.mark.parametrize("name", CONTENDERS)
def test_an_interrupted_trial_ends_with_the_same_bits(tmp_path, task, name):
    lr = CONTENDERS[name].lr
    spec, trial = small_spec(task, {name: (lr,)}), Trial(name, lr, 1)
    alone, alone_model = run_trial(task, spec, trial, Checkpoints(tmp_path / "alone.pt"), ignore)

    def interrupt_after(step):
        def on_step(done, loss, lr):
            if done == step:
                raise KeyboardInterrupt

        return on_step

    checkpoints = Checkpoints(tmp_path / "interrupted.pt", every_seconds=0, share=1)
    for step in (4, 7):  # interrupted, resumed, and interrupted again; each time the step itself is lost
        with pytest.raises(KeyboardInterrupt):
            run_trial(task, spec, trial, checkpoints, interrupt_after(step))
    resumed, resumed_model = run_trial(task, spec, trial, checkpoints, ignore)

    assert resumed.resumed_at_steps == [3, 6]
    assert resumed.train_loss == alone.train_loss
    assert [(e.step, e.loss) for e in resumed.evaluations] == [(e.step, e.loss) for e in alone.evaluations]
    assert resumed.validation_loss == alone.validation_loss
    for ours, theirs in zip(resumed_model.parameters(), alone_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Watched:
    """A task that notes which batches it hands out and the weights they meet."""

    def __init__(self, task):
        self.task, self.seen, self.initial = task, [], None

    def __getattr__(self, name):
        return getattr(self.task, name)

    def model(self, seed):
        model = self.task.model(seed)
        self.initial = [p.detach().clone() for p in model.parameters()]
        return model

    def batch(self, seed, step):
        batch = self.task.batch(seed, step)
        self.seen.append(batch[0])
        return batch


def test_every_optimizer_sees_the_same_batches_and_initial_weights(tmp_path, task):
    watched = {}
    spec = small_spec(task, {name: (contender.lr,) for name, contender in CONTENDERS.items()}, steps=2)
    for name, contender in CONTENDERS.items():
        watched[name] = Watched(task)
        run_trial(watched[name], spec, Trial(name, contender.lr, 0), Checkpoints(tmp_path / f"{name}.pt"), ignore)
    first = watched["adamw"]
    for other in watched.values():
        assert all(torch.equal(a, b) for a, b in zip(first.seen, other.seen, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first.initial, other.initial, strict=True))


def test_the_record_of_a_trial(tmp_path, task):
    spec, trial = small_spec(task, {"sgd": (0.1,)}), Trial("sgd", 0.1, 0)
    lrs = []
    record, model = run_trial(
        task, spec, trial, Checkpoints(tmp_path / "c.pt"), lambda done, loss, lr: lrs.append((done, lr))
    )
    assert [e.step for e in record.evaluations] == [3, 6, 8]  # every third step, and the last
    assert record.validation_loss == record.evaluations[-1].loss
    assert record.validation_loss == task.evaluate(model, "validation", torch.device("cpu"))
    assert len(record.train_loss) == len(record.train_seconds) == len(record.optimizer_ms) == 8
    assert [done for done, _ in lrs] == list(range(1, 9))
    assert [lr for _, lr in lrs[:3]] == pytest.approx([0.05, 0.1, 0.1])
    assert record.parameters == 983_680
    assert record.state_bytes == 4 * record.parameters  # the momentum buffer, float32
    write_json(tmp_path / "record.json", record.to_json())
    assert Record.from_json(read_json(tmp_path / "record.json")) == record


class Breaking(Watched):
    """A task whose training loss is not a number from one step on."""

    def loss(self, model, batch):
        loss = self.task.loss(model, batch)
        return loss * float("nan") if len(self.seen) > 5 and model.training and torch.is_grad_enabled() else loss


def test_a_diverged_trial_is_recorded_up_to_there(tmp_path, task):
    spec, trial = small_spec(task, {"adamw": (0.1,)}), Trial("adamw", 0.1, 0)
    record, model = run_trial(Breaking(task), spec, trial, Checkpoints(tmp_path / "c.pt"), ignore)
    assert record.diverged_at_step == 5
    assert record.validation_loss is None
    assert len(record.train_loss) == 5
    assert [e.step for e in record.evaluations] == [3]
    assert all(p.isfinite().all() for p in model.parameters())  # the bad gradient was not applied
    json.dumps(record.to_json(), allow_nan=False)


def test_a_real_divergence_is_noticed(tmp_path, task):
    spec = replace(small_spec(task, {"sgd": (1e30,)}), grad_clip=1e30)
    record, _ = run_trial(task, spec, Trial("sgd", 1e30, 0), Checkpoints(tmp_path / "c.pt"), ignore)
    assert record.diverged_at_step is not None
    assert record.validation_loss is None
