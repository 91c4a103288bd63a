"""A step as the programs around it see it: closures, hooks, the profiler, compilers, devices without numbers."""

import pytest
import torch
from tests.cases import (
    each_optimizer,
    each_rule,
    gradients,
    learning_rate,
    parameter,
    same_bits,
    snapshot,
    state_of,
    train,
)
from torch.utils._python_dispatch import TorchDispatchMode


@each_optimizer
def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned(info):
    p = parameter((3,))
    optimizer = info.make([p])
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.requires_grad
    assert int(optimizer.state[p]["step"]) == 1


@each_optimizer
def test_step_hooks_run_before_and_after(info):
    p = parameter((3,))
    optimizer = info.make([p])
    seen = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("before", p.detach().clone())))
    optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("after", p.detach().clone())))
    start = p.detach().clone()
    p.grad = torch.ones(3)
    optimizer.step()
    assert [when for when, _ in seen] == ["before", "after"]
    assert torch.equal(seen[0][1], start)
    assert torch.equal(seen[1][1], p)
    assert not torch.equal(start, p)


@each_optimizer
def test_zero_grad_drops_gradients_or_sets_them_to_zero(info):
    p = parameter((3,))
    optimizer = info.make([p])
    p.grad = torch.ones(3)
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    optimizer.zero_grad()
    assert p.grad is None


@each_optimizer
def test_the_profiler_names_a_step(info):
    p = parameter((3,))
    optimizer = info.make([p])
    p.grad = torch.ones(3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert f"Optimizer.step#{info.name}.step" in {event.key for event in profile.key_averages()}


class NoReading(TorchDispatchMode):
    """Fails on every operation that brings a value, or a shape that depends on values, back to the host."""

    READS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_to_cpu")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.READS, f"a step reads a value back: {func}"
        return func(*args, **(kwargs or {}))


def test_the_watcher_sees_a_value_that_is_read():
    with NoReading(), pytest.raises(AssertionError, match="reads a value back"):
        torch.ones(1).item()


@each_rule
@pytest.mark.parametrize("maximize", [False, True])
def test_a_step_never_reads_a_value_back_to_the_host(info, backend, maximize):
    """On an accelerator each such reading would wait for everything before it; a CUDA graph could not hold it."""
    shapes = [(), (7,), (4, 5), (2, 3, 4), (0,)]
    params = [parameter(shape, dtype=dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]
    optimizer = info.make(
        params, lr=torch.tensor(0.01), weight_decay=0.1, maximize=maximize, backend=backend, **info.small
    )
    for p in params:
        p.grad = torch.ones_like(p)
    with NoReading():
        for _ in range(2):
            optimizer.step()
    assert all(int(optimizer.state[p]["step"]) == 2 for p in params)


@each_optimizer
def test_a_step_runs_where_there_are_no_values_at_all(info):
    """On the meta device nothing can be read; libraries use it to plan memory."""
    params = [torch.zeros(shape, device="meta", requires_grad=True) for shape in [(), (7,), (4, 5), (2, 3, 4)]]
    optimizer = info.make(params, **info.small)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in params:
        assert state_of(optimizer, p).keys() == {"step"} | info.slots(tuple(p.shape), **info.small)
        assert {value.device.type for value in state_of(optimizer, p).values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_optimizer
def test_a_step_can_be_captured_in_a_cuda_graph(info):
    start = [parameter(shape, seed=i).detach().cuda() for i, shape in enumerate([(), (7,), (40, 50), (2, 3, 4)])]
    plain, captured = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    for p, q in zip(plain, captured, strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    ordinary, in_graph = (info.make(params, **info.small) for params in (plain, captured))
    in_graph.step()  # allocates the state
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        in_graph.step()
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        ordinary.step()
    torch.cuda.synchronize()
    for p, q in zip(plain, captured, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-7)
        assert int(in_graph.state[q]["step"]) == 4


@each_optimizer
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler
def test_a_whole_training_step_may_be_compiled_by_the_user(info):
    """The gradient and the step in one compiled function do what they do outside of it."""
    x = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)

    def loop(wrap):
        model = torch.nn.Linear(3, 5)
        with torch.no_grad():
            model.weight.copy_(parameter((5, 3)))
            model.bias.copy_(parameter((5,)))
        optimizer = info.of(model, lr=learning_rate(info, {}, scale=1.0), **info.small)

        @wrap
        def training_step():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        return [training_step().item() for _ in range(3)], snapshot(optimizer)

    losses, numbers = loop(lambda step: step)
    compiled_losses, compiled_numbers = loop(torch.compile(backend="aot_eager"))
    assert losses == pytest.approx(compiled_losses, rel=1e-6)
    for a, b in zip(numbers, compiled_numbers, strict=True):
        torch.testing.assert_close(a, b)


@each_optimizer
def test_a_tensor_learning_rate_is_read_at_every_step_and_never_written(info):
    """CUDA graphs and compiled schedules change it in place."""
    p, q = parameter((4, 5)), parameter((4, 5))
    g = gradients((4, 5), scale=0.1, steps=3, dtype=torch.float32)
    lr = torch.tensor(0.1)
    by_tensor, by_number = info.make([p], lr=lr), info.make([q], lr=0.1)
    for value, row in zip((0.1, 0.02, 0.3), g, strict=True):
        lr.fill_(value)
        version = lr._version
        by_number.param_groups[0]["lr"] = value
        train(by_tensor, {p: row[None]})
        train(by_number, {q: row[None]})
        assert lr._version == version
    torch.testing.assert_close(p, q, rtol=1e-6, atol=0.0)


@each_optimizer
def test_a_tensor_learning_rate_of_one_element_is_a_number(info):
    p, q = parameter((4, 5)), parameter((4, 5))
    g = gradients((4, 5), scale=0.1, steps=2, dtype=torch.float32)
    first, second = info.make([p], lr=torch.tensor([0.1])), info.make([q], lr=torch.tensor(0.1))
    train(first, {p: g})
    train(second, {q: g})
    assert p.shape == (4, 5)
    assert same_bits(snapshot(first), snapshot(second))
