"""SPEC D16: what must make no difference to a step."""

import pytest
import torch
from tests.adafisher.nets import apart, data, loss_of, make, numbers, same_bits, train

from fisheropt import AdaFisher, AdaFisherW

KINDS = ("mlp", "tied")  # the convnet has a BatchNorm, whose outputs do depend on the micro-batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [2, 4])
def test_k_micro_batches_whose_losses_are_divided_by_k_are_one_batch(kind, k):
    net, twin = make(kind), make(kind)
    whole, parts = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    batches = data(kind, 4, batch=8)
    train(net, whole, batches)
    for x in batches:
        parts.zero_grad()
        for part in x.chunk(k):
            (loss_of(twin, part) / k).backward()
        parts.step()
    assert apart(numbers(whole), numbers(parts)) <= 1e-11


def test_micro_batches_of_one_backward_count_like_those_of_several():
    net, twin = make("mlp"), make("mlp")
    one, several = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    for x in data("mlp", 3, batch=8):
        for model, optimizer, together in ((net, one, True), (twin, several, False)):
            optimizer.zero_grad()
            losses = [loss_of(model, part) / 2 for part in x.chunk(2)]
            for loss in [sum(losses)] if together else losses:
                loss.backward()
            optimizer.step()
    assert apart(numbers(one), numbers(several)) <= 1e-12


@pytest.mark.parametrize("normalize", ["after", "before"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_scale_of_a_grad_scaler_makes_no_difference_even_when_it_changes(normalize, dtype):
    """A power of two is divided out exactly. Between steps it goes up and down, which an average must not see."""
    net, twin = make("convnet", dtype), make("convnet", dtype)
    options = {"lr": 1e-5, "normalize": normalize, "update_every": 2}
    plain, scaled = AdaFisherW(net, **options), AdaFisherW(twin, **options)
    batches = data("convnet", 5, dtype=dtype)
    train(net, plain, batches)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    for i, x in enumerate(batches):
        scaled.zero_grad()
        scaler.scale(loss_of(twin, x)).backward()
        scaler.step(scaled)
        scaler.update(2.0**14 if i == 2 else None)
    assert scaler.get_scale() == 2.0**16
    assert same_bits(numbers(plain), numbers(scaled))


def test_a_step_that_a_grad_scaler_skips_leaves_no_trace():
    net, twin = make("mlp"), make("mlp")
    plain, scaled = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    batches = data("mlp", 4)
    train(net, plain, batches)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []
    for i, x in enumerate([batches[0], batches[1], batches[1] * float("inf"), *batches[2:]]):
        twin.zero_grad()  # the model's, which the optimizer does not hear of
        before = numbers(scaled)
        scaler.scale(loss_of(twin, x)).backward()
        scaler.step(scaled)
        scaler.update()
        scales.append(scaler.get_scale())
        assert same_bits(numbers(scaled), before) == (i == 2)
    assert scales == [2.0**10, 2.0**10, 2.0**9, 2.0**9, 2.0**9]
    assert same_bits(numbers(plain), numbers(scaled))


def test_a_grad_scaler_is_left_with_gradients_that_are_unscaled():
    net = make("mlp")
    optimizer, scaler = AdaFisher(net), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(loss_of(net, data("mlp")[0])).backward()
    kept = [p.grad.clone() for p in net.parameters()]
    scaler.step(optimizer)
    assert all(torch.equal(p.grad * 2.0**10, g) for p, g in zip(net.parameters(), kept, strict=True))


def test_gradients_unscaled_before_the_step_need_the_scale_to_be_said():
    """Clipping under GradScaler: its step does not say the scale then, and a guess would be wrong after a clip."""
    net, twin = make("mlp"), make("mlp")
    plain, scaled = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    def step(x):
        scaled.zero_grad()
        scaler.scale(loss_of(twin, x)).backward()
        scaler.unscale_(scaled)
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        scaler.step(scaled)
        scaler.update()

    batches = data("mlp", 5)
    with pytest.raises(RuntimeError, match=r"optimizer\.loss_scale = scaler\.get_scale"):
        step(batches[0])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    scaled.loss_scale = scaler.get_scale
    for x in batches:
        step(x)
        plain.zero_grad()
        loss_of(net, x).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        plain.step()
    assert scaler.get_scale() > 2.0**10
    assert same_bits(numbers(plain), numbers(scaled))


def test_a_loss_scale_of_ones_own_is_divided_out():
    net, twin = make("tied"), make("tied")
    plain, scaled = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5, loss_scale=8.0)
    batches = data("tied")
    train(net, plain, batches)
    for x in batches:
        scaled.zero_grad()
        (8 * loss_of(twin, x)).backward()
        for p in twin.parameters():
            p.grad /= 8
        scaled.step()
    assert same_bits(numbers(plain), numbers(scaled))


def test_a_scale_that_is_not_said_would_be_seen():
    """Or the tests above would prove nothing."""
    net, twin = make("mlp"), make("mlp")
    plain, scaled = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    batches = data("mlp", 3)
    train(net, plain, batches)
    for scale, x in zip((1, 8, 1), batches, strict=True):
        scaled.zero_grad()
        (scale * loss_of(twin, x)).backward()
        for p in twin.parameters():
            p.grad /= scale
        scaled.step()
    assert apart(numbers(plain), numbers(scaled)) > 1e-3


def test_zero_grad_forgets_the_passes_whose_gradients_it_drops():
    net, twin = make("mlp"), make("mlp")
    plain, other = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    batches = data("mlp", 3)
    train(net, plain, batches)
    for x in batches:
        loss_of(twin, 100 * x).backward()  # a loss that somebody does not like
        other.zero_grad()
        loss_of(twin, x).backward()
        other.step()
        other.zero_grad()
    assert same_bits(numbers(plain), numbers(other))


def test_passes_that_do_not_train_make_no_difference():
    """Evaluation between steps, and an adversarial input made with the same model in training mode."""
    net, twin = make("mlp"), make("mlp")
    plain, other = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    batches = data("mlp", 3)
    train(net, plain, batches)
    for x in batches:
        other.zero_grad()
        inputs = (5 * x).requires_grad_()
        torch.autograd.grad(loss_of(twin, inputs), inputs)
        with torch.no_grad():
            twin(7 * x)
        twin.eval()
        loss_of(twin, inputs).backward(inputs=[inputs])
        twin.train()
        loss_of(twin, x).backward()
        other.step()
    assert same_bits(numbers(plain), numbers(other))
