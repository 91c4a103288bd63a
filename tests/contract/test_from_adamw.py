"""from_adamw: f is Adam's corrected second moment, and training goes on from there as the oracle does."""

import copy
import io

import pytest
import torch
from tests.cases import gradients, parameter, relative_error, same_bits, snapshot, train
from tests.oracle.fadam import fadam

import fisheropt

SHAPES = ((3,), (4, 5))


def trained(cls=torch.optim.AdamW, *, dtype=torch.float64, steps=5, **options):
    """A torch optimizer after some steps, with two groups and a parameter that never had a gradient."""
    first, second, idle = (parameter(shape, dtype=dtype, seed=i) for i, shape in enumerate((*SHAPES, (2,))))
    groups = [{"params": [first], "lr": 0.02, "betas": (0.8, 0.95)}, {"params": [second, idle]}]
    adam = cls(groups, lr=0.01, **options)
    train(adam, {p: gradients(tuple(p.shape), scale=0.1, steps=steps, dtype=dtype) for p in (first, second)})
    return adam, (first, second), idle


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"capturable": False}], ids=str)
def test_f_is_the_corrected_second_moment_and_the_step_is_carried(cls, options):
    adam, moved, idle = trained(cls, **options)
    start = fisheropt.from_adamw(adam)
    for p, beta2 in zip(moved, (0.95, 0.999), strict=True):
        corrected = adam.state[p]["exp_avg_sq"] / (1.0 - beta2**5)
        assert relative_error(start.state[p]["f"], corrected.numpy()) <= 1e-14
        assert int(start.state[p]["step"]) == 5
        assert start.state[p].keys() == {"step", "f", "m"}
    assert idle not in start.state


def test_groups_keep_their_options_and_weight_decay_is_fadams():
    adam, (first, second), idle = trained(weight_decay=0.1, eps=1e-6)
    start = fisheropt.from_adamw(adam)
    assert [group["lr"] for group in start.param_groups] == [0.02, 0.01]
    assert [group["betas"] for group in start.param_groups] == [(0.8, 0.95), (0.9, 0.999)]
    assert [group["eps"] for group in start.param_groups] == [1e-6, 1e-6]
    assert [group["weight_decay"] for group in start.param_groups] == [1e-3, 1e-3]
    assert [group["params"] for group in start.param_groups] == [[first], [second, idle]]
    chosen = fisheropt.from_adamw(adam, weight_decay=0.02, clip=None, rho=0.7)
    assert {(g["weight_decay"], g["clip"], g["rho"]) for g in chosen.param_groups} == {(0.02, None, 0.7)}


@pytest.mark.parametrize("options", [{}, {"clip": None}, {"rho": 0.7, "clip": 0.25}], ids=str)
def test_the_momentum_is_adams_in_the_metric_and_within_the_clip(options):
    adam, moved, _ = trained()
    start = fisheropt.from_adamw(adam, **options)
    for p in moved:
        rho, clip = options.get("rho", 0.5), options.get("clip", 1.0)
        f = start.state[p]["f"]
        natural = adam.state[p]["exp_avg"] / (f**rho + 1e-8 ** (2 * rho))
        length = natural.square().mean().sqrt().item()
        expected = natural if clip is None else natural / max(1.0, length / clip)
        assert relative_error(start.state[p]["m"], expected.numpy()) <= 1e-13


@pytest.mark.parametrize("options", [{}, {"rho": 0.7, "clip": 2.0}, {"betas": (0.0, 0.99)}], ids=str)
def test_training_goes_on_as_the_oracle_does_from_that_state(options):
    adam, moved, _ = trained()
    start = fisheropt.from_adamw(adam, **options)
    expected = {}
    for p, group in zip(moved, start.param_groups, strict=True):
        slots = {name: value.numpy().copy() for name, value in start.state[p].items() if name != "step"}
        slots.setdefault("m", 0.0 * slots["f"])
        expected[p] = (p.detach().numpy().copy(), {"step": 5, **slots}, {"lr": group["lr"], "betas": group["betas"]})
    for t in range(3):
        for p in moved:
            p.grad = gradients(tuple(p.shape), scale=0.1, steps=3, dtype=p.dtype, seed=4)[t]
            value, state, own = expected[p]
            value, state = fadam(value, p.grad.numpy(), state, **(own | options))
            expected[p] = (value, state, own)
        start.step()
    for p in moved:
        value, state, _ = expected[p]
        assert relative_error(p, value) <= 1e-12
        assert relative_error(start.state[p]["f"], state["f"]) <= 1e-12


def test_f_goes_on_as_adams_corrected_second_moment():
    """SPEC D4, and the reason that the state can be carried over at all."""
    adam, moved, _ = trained()
    twin = copy.deepcopy(adam)
    start = fisheropt.from_adamw(adam)
    theirs = [p for group in twin.param_groups for p in group["params"]][:2]
    for optimizer, params in ((start, moved), (twin, theirs)):
        train(optimizer, {p: gradients(tuple(p.shape), scale=0.1, steps=4, dtype=p.dtype, seed=4) for p in params})
    for p, q, beta2 in zip(moved, theirs, (0.95, 0.999), strict=True):
        corrected = twin.state[q]["exp_avg_sq"] / (1.0 - beta2**9)
        assert relative_error(start.state[p]["f"], corrected.numpy()) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_state_gives_what_the_optimizer_gives(dtype):
    adam, moved, idle = trained(dtype=dtype)
    file = io.BytesIO()
    torch.save(adam.state_dict(), file)
    file.seek(0)
    running = fisheropt.from_adamw(adam, weight_decay=0.01)
    copies = [p.detach().clone().requires_grad_() for p in (*moved, idle)]
    saved = fisheropt.from_adamw(torch.load(file, weights_only=True), copies, weight_decay=0.01)
    assert same_bits(snapshot(saved), snapshot(running))
    for optimizer, params in ((running, moved), (saved, copies)):
        train(optimizer, {p: gradients(tuple(p.shape), scale=0.1, steps=2, dtype=dtype) for p in params[:2]})
    assert same_bits(snapshot(saved), snapshot(running))
    assert {v.dtype for name, v in saved.state[copies[0]].items() if name != "step"} == {torch.float32}


def test_the_source_is_left_alone_and_shares_nothing():
    adam, moved, _ = trained(dtype=torch.float32)
    adam.param_groups[0]["lr"] = torch.tensor(0.25)
    kept = copy.deepcopy(adam.state_dict())
    start = fisheropt.from_adamw(adam)
    train(start, {p: torch.ones(2, *p.shape) for p in moved})
    start.param_groups[0]["lr"].fill_(7.0)
    after = adam.state_dict()
    assert after["param_groups"] == kept["param_groups"]
    for key, state in kept["state"].items():
        assert all(torch.equal(after["state"][key][name], value) for name, value in state.items())


def test_names_of_parameters_are_kept():
    model = torch.nn.Linear(2, 3)
    adam = torch.optim.AdamW(model.named_parameters())
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    assert fisheropt.from_adamw(adam).param_groups[0]["param_names"] == ["weight", "bias"]


def test_before_the_first_step_there_is_nothing_to_carry():
    p = parameter((3,))
    start = fisheropt.from_adamw(torch.optim.AdamW([p], lr=0.3))
    assert not start.state
    assert start.param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("source", [torch.optim.SGD([parameter((2,))], lr=0.1), {"weights": 1}, None], ids=str)
def test_a_source_that_is_no_adam_is_refused(source):
    with pytest.raises(TypeError, match="Adam"):
        fisheropt.from_adamw(source)


def test_parameters_are_needed_with_a_saved_state_and_only_then():
    adam, moved, _ = trained()
    with pytest.raises(TypeError, match="params"):
        fisheropt.from_adamw(adam.state_dict())
    with pytest.raises(TypeError, match="params"):
        fisheropt.from_adamw(adam, list(moved))


def test_a_saved_state_of_other_parameters_is_refused():
    adam, moved, idle = trained()
    with pytest.raises(ValueError, match=r"3.*2"):
        fisheropt.from_adamw(adam.state_dict(), list(moved))
    with pytest.raises(ValueError, match="shape"):
        fisheropt.from_adamw(adam.state_dict(), [moved[1], moved[0], idle])


def test_a_saved_state_that_is_not_adams_is_refused():
    p = parameter((3,))
    sgd = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones(3)
    sgd.step()
    with pytest.raises(ValueError, match="Adam"):
        fisheropt.from_adamw(sgd.state_dict(), [p])


def test_an_unknown_option_is_refused():
    adam, *_ = trained()
    with pytest.raises(ValueError, match="rhoo"):
        fisheropt.from_adamw(adam, rhoo=0.5)
