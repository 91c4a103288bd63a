"""Every learning-rate scheduler of torch drives every optimizer, through floats and through a tensor."""

import inspect

import pytest
import torch
from tests.cases import each_optimizer, gradients, parameter, same_bits, snapshot
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

STEPS = 6

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, step_size=2, gamma=0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, milestones=[2, 4]),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, factor=0.5, total_iters=3),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.1, total_iters=4),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, gamma=0.8),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=4, power=2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=5),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, T_0=3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(
        opt, base_lr=0.01, max_lr=0.1, step_size_up=2, cycle_momentum="betas" in opt.defaults
    ),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(
        opt, max_lr=0.1, total_steps=STEPS + 1, cycle_momentum="betas" in opt.defaults
    ),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, factor=0.1, total_iters=2), lr_scheduler.ExponentialLR(opt, 0.9)], [2]
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(opt, start_factor=0.5, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "SWALR": lambda opt: SWALR(opt, swa_lr=0.02, anneal_epochs=3),
}


def public_schedulers():
    bases = (lr_scheduler.LRScheduler, lr_scheduler._LRScheduler)
    return {
        name
        for name, cls in vars(lr_scheduler).items()
        if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler) and cls not in bases
    }


def test_no_scheduler_of_torch_is_left_out():
    assert public_schedulers() <= SCHEDULERS.keys()


def advance(scheduler):
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


@each_optimizer
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduled_run_is_the_run_with_the_same_numbers_set_by_hand(info, name):
    p, q = parameter((4, 5)), parameter((4, 5))
    scheduled, by_hand = info.make([p], lr=0.1), info.make([q], lr=0.1)
    scheduler = SCHEDULERS[name](scheduled)
    seen = []
    for g in gradients((4, 5), scale=0.1, steps=STEPS, dtype=torch.float32):
        group = scheduled.param_groups[0]
        option, _ = info.momentum
        seen.append((group["lr"], group[option]))
        by_hand.param_groups[0].update({"lr": group["lr"], option: group[option]})
        for optimizer, tensor in ((scheduled, p), (by_hand, q)):
            tensor.grad = g.clone()
            optimizer.step()
        advance(scheduler)
    assert len(set(seen)) > 1, "the scheduler changed nothing, so this has tested nothing"
    if name in ("CyclicLR", "OneCycleLR") and info.has("betas"):  # the name that torch's schedulers know
        assert len({betas for _, betas in seen}) > 1
    assert same_bits(snapshot(scheduled), snapshot(by_hand))


@each_optimizer
@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - {"CyclicLR", "SWALR"}))
def test_a_schedule_of_a_tensor_is_that_of_a_number(info, name):
    """Schedulers write into a tensor learning rate in place."""
    p, q = parameter((4, 5)), parameter((4, 5))
    lr = torch.tensor(0.1)
    by_tensor, by_number = info.make([p], lr=lr), info.make([q], lr=0.1)
    schedulers = [SCHEDULERS[name](optimizer) for optimizer in (by_tensor, by_number)]
    for g in gradients((4, 5), scale=0.1, steps=STEPS, dtype=torch.float32):
        for optimizer, tensor, scheduler in zip((by_tensor, by_number), (p, q), schedulers, strict=True):
            tensor.grad = g.clone()
            optimizer.step()
            advance(scheduler)
    assert by_tensor.param_groups[0]["lr"] is lr
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@each_optimizer
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_checkpoint_in_the_middle_of_a_schedule_loads(info, name):
    """Schedulers leave keys of their own in the groups."""
    p, q = parameter((4, 5)), parameter((4, 5))
    first, second = info.make([p], lr=0.1), info.make([q], lr=0.1)
    scheduler, resumed = SCHEDULERS[name](first), SCHEDULERS[name](second)
    g = gradients((4, 5), scale=0.1, steps=STEPS, dtype=torch.float32)
    for row in g[:3]:
        p.grad = row.clone()
        first.step()
        advance(scheduler)
    q.data.copy_(p.detach())
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for row in g[3:]:
        for optimizer, tensor, schedule in ((first, p, scheduler), (second, q, resumed)):
            tensor.grad = row.clone()
            optimizer.step()
            advance(schedule)
    assert same_bits(snapshot(first), snapshot(second))
    assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"]
