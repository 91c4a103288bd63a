"""What a capture sees, what it does not, what it leaves alone, and how it ends."""

import copy
import gc
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fisheropt.fisher import Capture


class Notes:
    """A receiver that keeps everything."""

    def __init__(self):
        self.on = True
        self.calls = []

    def wants(self, module):
        return self.on

    def remember(self, module, x):
        return x.clone()

    def contribution(self, module, remembered, s):
        return remembered, s.clone()

    def add(self, module, contribution):
        self.calls.append((module, *contribution))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.act = nn.ReLU(inplace=True)
        self.way = "plain"

    def forward(self, x):
        if self.way in ("reentrant", "not reentrant"):
            h = checkpoint(self.body, x, use_reentrant=self.way == "reentrant")
        else:
            h = self.body(x)
        return self.second(input=h)

    def body(self, x):
        return self.act(self.first(x))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def watched(net):
    notes = Notes()
    capture = Capture({"first": net.first, "second": net.second}, notes)
    yield notes
    capture.close()


def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(3))


def by_hand(net):
    """Inputs and output gradients of both layers, without hooks and without anything in place."""
    a = net.first(x())
    h = a.relu()
    b = net.second(h)
    of_a, of_b = torch.autograd.grad(b.square().mean(), (a, b))
    return {net.first: (x(), of_a), net.second: (h, of_b)}


@pytest.mark.parametrize("way", ["plain", "not reentrant", "reentrant"])
def test_each_call_is_seen_once_with_its_input_and_gradient(net, way):
    """Before an activation in place, through keywords, and under either kind of checkpointing."""
    expected = by_hand(net)
    notes = Notes()
    capture = Capture({"first": net.first, "second": net.second}, notes)
    net.way = way
    net(x().requires_grad_()).square().mean().backward()
    assert len(notes.calls) == 2
    for module, h, s in notes.calls:
        torch.testing.assert_close(h, expected[module][0])
        torch.testing.assert_close(s, expected[module][1])
    capture.close()


def test_a_module_called_twice_is_seen_twice(net, watched):
    net.second(net.body(x()) + net.body(2 * x())).square().mean().backward()
    assert [module for module, _, _ in watched.calls].count(net.first) == 2
    assert [module for module, _, _ in watched.calls].count(net.second) == 1


def test_passes_that_are_not_training_are_not_seen(net, watched):
    with torch.no_grad():
        net(x())
    with torch.inference_mode():
        net(x())
    net(x())  # no backward
    torch.func.vmap(torch.func.grad(lambda p, one: torch.func.functional_call(net, p, (one,)).sum()), (None, 0))(
        {name: p.detach() for name, p in net.named_parameters()}, x()
    )
    others = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    torch.func.functional_call(net, others, (x(),)).sum().backward()
    assert not watched.calls


def test_gradients_that_add_to_no_parameter_are_not_counted(net, watched):
    """An adversarial input, or a diagnosis, before the backward pass that trains: it counts, alone."""
    inputs = x().requires_grad_()
    torch.autograd.grad(net(inputs).sum(), inputs)
    assert not watched.calls
    loss = net(x()).square().mean()
    torch.autograd.grad(3 * loss, net.second.weight, retain_graph=True)
    loss.backward()
    expected = by_hand(net)
    assert len(watched.calls) == 2
    for module, _, s in watched.calls:
        torch.testing.assert_close(s, expected[module][1])


def test_two_backward_passes_through_one_call_are_refused(net, watched):
    y = net(x())
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"'second'.*add the losses"):
        y.square().sum().backward()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_second_order_graph_is_not_recorded(net, watched):
    net(x()).square().mean().backward(create_graph=True)
    assert len(watched.calls) == 2
    assert not any(s.requires_grad for _, _, s in watched.calls)
    for p in net.parameters():
        p.grad = None  # or the graph and the parameters would keep each other


def test_a_receiver_that_does_not_want_a_call_is_not_told(net, watched):
    watched.on = False
    net(x()).sum().backward()
    assert not watched.calls


def test_a_frozen_layer_is_not_seen_and_a_thawed_one_is(net, watched):
    net.first.requires_grad_(False)
    net(x()).sum().backward()
    assert {module for module, _, _ in watched.calls} == {net.second}
    net.first.bias.requires_grad_(True)
    watched.calls.clear()
    net(x()).sum().backward()
    assert {module for module, _, _ in watched.calls} == {net.first, net.second}


def test_nothing_of_the_model_is_touched(net):
    def run(model):
        torch.manual_seed(7)
        model.train()
        model(x()).square().mean().backward()
        return [p.grad for p in model.parameters()], torch.get_rng_state(), [m.training for m in model.modules()]

    grads, rng, flags = run(copy.deepcopy(net))
    capture = Capture({"first": net.first, "second": net.second}, Notes())
    seen_grads, seen_rng, seen_flags = run(net)
    assert all(torch.equal(a, b) for a, b in zip(grads, seen_grads, strict=True))
    assert torch.equal(rng, seen_rng)
    assert flags == seen_flags
    capture.close()


def hooks(net):
    of_modules = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()]
    return sum(of_modules) + sum(len(p._post_accumulate_grad_hooks or ()) for p in net.parameters())


def test_closing_removes_every_hook(net):
    notes = Notes()
    capture = Capture({"first": net.first, "second": net.second}, notes)
    y = net(x())
    assert hooks(net) == 2 + 4
    capture.close()
    capture.close()
    assert hooks(net) == 0
    y.sum().backward()
    assert capture.closed
    assert not notes.calls


def test_the_end_of_the_last_reference_removes_every_hook_at_once(net):
    gc.disable()
    try:
        capture = Capture({"first": net.first}, Notes())
        y = net(x())
        assert hooks(net) > 0
        del capture
        assert hooks(net) == 0
        y.sum().backward()
    finally:
        gc.enable()


def test_a_copy_of_the_model_does_not_report_to_the_capture(net, watched):
    """An average of weights is such a copy; so is what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(buffer, weights_only=False)):
        other(x()).sum().backward()
    assert not watched.calls
    net(x()).sum().backward()
    assert len(watched.calls) == 2
