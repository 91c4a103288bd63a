"""What is counted without numbers is what a real step leaves behind."""

import pytest
import torch
from torch import nn

from fisheropt_lab.footprint import footprint, state_of
from fisheropt_lab.optimizers import CONTENDERS, contender, state_bytes
from fisheropt_lab.tasks import TASKS, Asked, Outline


@pytest.mark.parametrize("name", CONTENDERS)
def test_state_is_that_of_a_real_step(name):
    kind = TASKS["digits"]
    settings = kind.setup(Asked(batch_size=4)).settings
    task = kind.load(settings)
    model = task.model(0)
    optimizer = contender(name).build(model, 1e-3, "eager")
    task.loss(model, task.batch(0, 0)).backward()
    optimizer.step()
    assert state_of(kind.outline(settings), name) == state_bytes(optimizer)


def test_activations_are_what_is_kept_for_the_backward_pass():
    """Two layers with a ReLU between: the input, and what ReLU gives, which the next layer keeps too; no weights."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        x = torch.empty(7, 3)
    found = footprint(Outline(model, lambda net: net(x).sum(), "7 rows"))
    assert found.activation_bytes == 4 * (7 * 3 + 7 * 5)
    assert found.parameters == 3 * 5 + 5 + 5 * 2 + 2
    assert found.weight_bytes == 4 * found.parameters
    assert all(found.state_bytes[name] == 4 * found.parameters for name in ("sgd", "sgd-control"))


@pytest.mark.parametrize("task", TASKS)
def test_every_size_of_every_task_has_an_outline(task):
    kind = TASKS[task]
    for size in kind.sizes or (None,):
        outline = kind.outline(kind.setup(Asked(size=size)).settings)
        assert all(p.is_meta for p in outline.model.parameters())
        assert outline.loss(outline.model).shape == ()
