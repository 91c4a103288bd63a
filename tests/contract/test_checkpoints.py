"""Saving and loading: bit for bit, checked before anything changes, and never sharing memory."""

import copy
import io
import pickle

import pytest
import torch
from tests.cases import (
    OPTIMIZERS,
    each_optimizer,
    each_rule,
    gradients,
    parameter,
    same_bits,
    snapshot,
    state_of,
    train,
)

SHAPES = ((3,), (4, 5), (), (2, 3, 4))


def trained(info, *, steps=3, seed=0, backend="eager", **options):
    """An optimizer with two groups, one of whose parameters never had a gradient."""
    params = [parameter(shape, seed=i) for i, shape in enumerate(SHAPES)]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": [*params[2:], parameter((6,), seed=9)]}]
    optimizer = info.make(groups, backend=backend, **(info.small | {"lr": 0.01} | options))
    go_on(optimizer, steps=steps, seed=seed)
    return optimizer


def go_on(optimizer, *, steps=2, seed=5):
    """Train everything but the last parameter."""
    *params, _ = (p for group in optimizer.param_groups for p in group["params"])
    train(optimizer, {p: gradients(tuple(p.shape), scale=0.1, steps=steps, dtype=p.dtype, seed=seed) for p in params})


def empty_twin(info, optimizer, **options):
    """A new optimizer over copies of the parameters, with other options, as a restarted program has."""
    groups = [{"params": [p.detach().clone().requires_grad_() for p in g["params"]]} for g in optimizer.param_groups]
    return info.make(groups, **(info.small | {"lr": 0.5} | options))


def saved(optimizer):
    """The state_dict after a journey through a file, opened as untrusted files should be."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors_in(value):
    if isinstance(value, dict):
        return [tensor for key in sorted(value, key=str) for tensor in tensors_in(value[key])]
    return [torch.as_tensor(value)]


def options_of(optimizer):
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


@each_rule
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(info, backend):
    optimizer = trained(info, backend=backend, weight_decay=0.01)
    other = empty_twin(info, optimizer)
    other.load_state_dict(saved(optimizer))
    assert options_of(other) == options_of(optimizer)
    assert same_bits(snapshot(other), snapshot(optimizer))
    for each in (optimizer, other):
        go_on(each)
    assert same_bits(snapshot(other), snapshot(optimizer))


@each_optimizer
def test_what_a_scheduler_left_in_a_group_is_kept(info):
    optimizer = trained(info)
    optimizer.param_groups[0]["phase_of_my_scheduler"] = 3
    other = empty_twin(info, optimizer)
    other.load_state_dict(saved(optimizer))
    assert other.param_groups[0]["phase_of_my_scheduler"] == 3


@each_optimizer
def test_a_checkpoint_before_the_first_step_loads(info):
    optimizer = trained(info, steps=0)
    other = empty_twin(info, optimizer)
    other.load_state_dict(saved(optimizer))
    for each in (optimizer, other):
        go_on(each)
    assert same_bits(snapshot(other), snapshot(optimizer))


@each_optimizer
def test_a_deep_copy_goes_its_own_way(info):
    optimizer = trained(info)
    twin = copy.deepcopy(optimizer)
    assert same_bits(snapshot(twin), snapshot(optimizer))
    before = snapshot(optimizer)
    go_on(twin)
    assert same_bits(snapshot(optimizer), before)
    go_on(optimizer)
    assert same_bits(snapshot(twin), snapshot(optimizer))


@each_optimizer
def test_a_pickle_goes_on_where_it_was(info):
    optimizer = trained(info)
    twin = pickle.loads(pickle.dumps(optimizer))
    for each in (optimizer, twin):
        go_on(each)
    assert options_of(twin) == options_of(optimizer)
    assert same_bits(snapshot(twin), snapshot(optimizer))


@each_optimizer
def test_loading_shares_no_memory_with_what_was_loaded(info):
    optimizer = trained(info, lr=torch.tensor(0.25))
    state_dict = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state_dict)
    other = empty_twin(info, optimizer)
    other.load_state_dict(state_dict)
    go_on(other)
    other.param_groups[1]["lr"].fill_(7.0)
    other.param_groups[0]["params"].clear()
    assert state_dict["param_groups"] == kept["param_groups"]
    assert same_bits(tensors_in(state_dict["state"]), tensors_in(kept["state"]))


@each_optimizer
def test_state_follows_the_memory_layout_of_the_parameter_it_is_loaded_for(info):
    """A checkpoint of a contiguous model goes on in channels_last, and the other way round."""
    p = parameter((2, 3, 4, 5), dtype=torch.float64)
    g = gradients((2, 3, 4, 5), scale=0.1, steps=4, dtype=torch.float64)
    optimizer = info.make([p], **info.small)
    train(optimizer, {p: g[:2]})
    q = p.detach().clone(memory_format=torch.channels_last).requires_grad_()
    other = info.make([q], **info.small)
    other.load_state_dict(optimizer.state_dict())
    train(optimizer, {p: g[2:]})
    train(other, {q: g[2:].contiguous()})
    torch.testing.assert_close(q, p, rtol=1e-13, atol=0.0)
    whole = [v for v in state_of(other, q).values() if v.shape == q.shape]
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in whole)


@each_optimizer
def test_a_pre_hook_may_replace_the_state_dict(info):
    """As programs do whose model lists its parameters in another order than the checkpoint: by name."""
    p, q = parameter((3,)), parameter((4, 5))
    optimizer = info.make([("p", p), ("q", q)], **info.small)
    train(optimizer, {t: gradients(tuple(t.shape), scale=0.1, steps=2, dtype=torch.float32) for t in (p, q)})
    p2, q2 = (t.detach().clone().requires_grad_() for t in (p, q))
    other = info.make([("q", q2), ("p", p2)], **info.small)

    def by_name(opt, state_dict):
        (group,) = state_dict["param_groups"]
        key = dict(zip(group["param_names"], group["params"], strict=True))
        names = opt.param_groups[0]["param_names"]
        state = state_dict["state"] | {i: state_dict["state"][key[name]] for i, name in enumerate(names)}
        return {"state": state, "param_groups": [{**group, "params": [0, 1], "param_names": names}]}

    other.register_load_state_dict_pre_hook(by_name)
    other.load_state_dict(optimizer.state_dict())
    for each, tensors in ((optimizer, (p, q)), (other, (p2, q2))):
        train(each, {t: gradients(tuple(t.shape), scale=0.1, steps=2, dtype=torch.float32, seed=3) for t in tensors})
    assert torch.equal(p, p2)
    assert torch.equal(q, q2)


@each_optimizer
def test_hooks_of_saving_and_loading_run_and_see_plain_state(info):
    optimizer = trained(info)
    seen = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda opt, state_dict: {**state_dict, "mine": 1})
    state_dict = optimizer.state_dict()
    assert state_dict["mine"] == 1
    other = empty_twin(info, optimizer)
    other.register_load_state_dict_pre_hook(lambda opt, given: seen.append(type(given["state"][0]["step"])))
    other.register_load_state_dict_post_hook(
        lambda opt: seen.append(int(opt.state[opt.param_groups[0]["params"][0]]["step"]))
    )
    other.load_state_dict(state_dict)
    assert seen == ["before saving", torch.Tensor, 3]


@each_optimizer
def test_hooks_stay_after_a_load_and_a_failed_one(info):
    """The library may use hooks to load; the user's must be the only ones left."""
    optimizer = trained(info)
    calls = []
    optimizer.register_load_state_dict_pre_hook(lambda opt, given: calls.append("pre"))
    for _ in range(2):
        optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre"] * 4
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1
    assert not optimizer._optimizer_load_state_dict_post_hooks


@each_optimizer
def test_loading_turns_the_momentum_off_and_on_again(info):
    name, (_, decay, _) = info.momentum
    optimizer = trained(info, **info.without_momentum)
    assert not any("m" in state for state in optimizer.state.values())
    optimizer.param_groups[0][name] = decay
    other = empty_twin(info, optimizer)
    other.load_state_dict(saved(optimizer))
    for each in (optimizer, other):
        go_on(each)
    first, last = other.param_groups[0]["params"][0], other.param_groups[1]["params"][0]
    assert "m" in other.state[first]
    assert "m" not in other.state[last]
    assert same_bits(snapshot(other), snapshot(optimizer))


@each_optimizer
def test_groups_are_added_after_a_load_a_copy_and_a_pickle_as_before(info):
    """torch's __setstate__ slips an option of its own into the defaults, where it would reach the new group."""
    optimizer = trained(info)
    loaded = empty_twin(info, optimizer)
    loaded.load_state_dict(optimizer.state_dict())
    for each in (loaded, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(loaded)):
        assert each.defaults.keys() == optimizer.defaults.keys()
        late = parameter((2,))
        info.admit(each, late)
        each.add_param_group({"params": [late]})
        each.load_state_dict(each.state_dict())
        go_on(each)


# -- what is refused ---------------------------------------------------------------------------------------------------


def without_step(state_dict):
    del state_dict["state"][1]["step"]


def second_moment(state_dict):
    """What has the second moment of a parameter, and the name of one there."""
    state = state_dict["state"][1]
    if "fisher" in state_dict["state"]:
        state = state_dict["state"]["fisher"]["factors"]["0.1"]
    return state, next(name for name in sorted(state) if name not in ("step", "m", "updates"))


def a_wrong_shape(state_dict):
    state, slot = second_moment(state_dict)
    state[slot] = state[slot].new_ones(7)


def a_missing_second_moment(state_dict):
    state, slot = second_moment(state_dict)
    del state[slot]


def an_unknown_slot(state_dict):
    state_dict["state"][1]["velocity"] = torch.zeros(4, 5)


def a_group_too_many(state_dict):
    state_dict["param_groups"].append({**state_dict["param_groups"][0], "params": []})


def a_group_too_few(state_dict):
    state_dict["param_groups"].pop()


def a_parameter_too_few(state_dict):
    state_dict["param_groups"][1]["params"].pop()


def a_wrong_value(state_dict):
    state_dict["param_groups"][1]["lr"] = -1.0


def an_option_of_torchs_own_optimizers(state_dict):
    state_dict["param_groups"][1]["fused"] = True


BROKEN = (
    without_step,
    a_wrong_shape,
    a_missing_second_moment,
    an_unknown_slot,
    a_group_too_many,
    a_group_too_few,
    a_parameter_too_few,
    a_wrong_value,
    an_option_of_torchs_own_optimizers,
)


def refused(optimizer, state_dict, match):
    """Loading fails, and afterwards the optimizer is what it was and goes on as it would have."""
    before, options = snapshot(optimizer), options_of(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state_dict)
    assert same_bits(snapshot(optimizer), before)
    assert options_of(optimizer) == options
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        go_on(each)
    assert same_bits(snapshot(twin), snapshot(optimizer))


@each_optimizer
@pytest.mark.parametrize("broken", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_checkpoint_is_refused_and_changes_nothing(info, broken):
    state_dict = copy.deepcopy(trained(info).state_dict())
    broken(state_dict)
    refused(trained(info, steps=1), state_dict, match=r"state|saved|group|lr|fused")


@pytest.mark.parametrize(
    ("info", "other"),
    [(a, b) for a in OPTIMIZERS for b in OPTIMIZERS if a.per_parameter((4, 5)) != b.per_parameter((4, 5))],
    ids=str,
)
def test_the_state_of_another_optimizer_is_refused_by_name(info, other):
    refused(trained(info), trained(other).state_dict(), match=info.name)


@each_optimizer
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD])
def test_the_state_of_an_optimizer_of_torch_is_refused(info, cls):
    optimizer = trained(info)
    source = cls(
        empty_twin(info, optimizer).param_groups, lr=0.1, **({"momentum": 0.9} if cls is torch.optim.SGD else {})
    )
    go_on(source)
    refused(optimizer, source.state_dict(), match="from_adamw" if cls is torch.optim.AdamW else info.name)


@pytest.mark.parametrize("info", [info for info in OPTIMIZERS if info.factors], ids=str)
def test_a_factored_state_is_refused_where_the_whole_is_kept(info):
    optimizer = trained(info)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for group in state_dict["param_groups"]:
        group["min_dim_size_to_factor"] = 128
    refused(optimizer, state_dict, match="state")
