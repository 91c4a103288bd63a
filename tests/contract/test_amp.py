"""Mixed precision: autocast, and a GradScaler that skips the steps it must."""

import torch
from tests.cases import each_optimizer, learning_rate, parameter, same_bits, snapshot


def model_like(p, q):
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(p)
        model.bias.copy_(q)
    return model


@each_optimizer
def test_a_scaled_step_is_the_unscaled_one(info):
    """Scales are powers of two, so that unscaling is exact."""
    x = torch.linspace(-1.0, 1.0, 8).reshape(2, 4)
    results = []
    for scaled in (False, True):
        model = model_like(parameter((3, 4)), parameter((3,)))
        optimizer = info.of(model, lr=learning_rate(info, {}, scale=1.0), **info.small)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(snapshot(optimizer))
    assert same_bits(*results)


@each_optimizer
def test_a_step_with_an_infinite_gradient_is_skipped_as_a_whole(info):
    """No parameter moves, no state appears, no step is counted; and the scale is halved."""
    p, q = parameter((3,)), parameter((4, 5))
    optimizer = info.make([p, q], **info.small)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def backward(factor):
        optimizer.zero_grad()
        scaler.scale(p.sum() * factor + q.square().sum()).backward()

    backward(1.0)
    scaler.step(optimizer)
    scaler.update()
    before = snapshot(optimizer)
    backward(float("inf"))
    scaler.step(optimizer)
    scaler.update()
    assert same_bits(snapshot(optimizer), before)
    assert scaler.get_scale() == 512.0
    backward(1.0)
    scaler.step(optimizer)
    assert int(optimizer.state[p]["step"]) == 2


@each_optimizer
def test_a_gradient_scaler_that_unscales_first_allows_clipping_in_between(info):
    p, q = parameter((4, 5)), parameter((4, 5))
    scaled, plain = info.make([p], **info.small), info.make([q], **info.small)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    if hasattr(scaled, "loss_scale"):  # what watches a model has to be told, once
        scaled.loss_scale = scaler.get_scale
    scaler.scale((p**2).sum()).backward()
    scaler.unscale_(scaled)
    (q**2).sum().backward()
    for tensor in (p, q):
        torch.nn.utils.clip_grad_norm_([tensor], 0.5)
    scaler.step(scaled)
    plain.step()
    assert same_bits(snapshot(scaled), snapshot(plain))


@each_optimizer
def test_a_step_inside_autocast_is_not_cast(info):
    p, q = parameter((4, 5)), parameter((4, 5))
    inside, outside = info.make([p], **info.small), info.make([q], **info.small)
    p.grad, q.grad = torch.ones(4, 5) / 3, torch.ones(4, 5) / 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.step()
    outside.step()
    assert same_bits(snapshot(inside), snapshot(outside))
