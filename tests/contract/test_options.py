"""Options: what is refused, and what the message says."""

import inspect

import pytest
import torch
from tests.cases import COMMON_WRONG, COMMON_WRONG_TYPE, OPTIMIZERS, each_optimizer, parameter, snapshot

import fisheropt

WRONG = [
    pytest.param(info, options, id=f"{info}-{options}") for info in OPTIMIZERS for options in COMMON_WRONG + info.wrong
]


@pytest.mark.parametrize(("info", "options"), WRONG)
def test_a_value_out_of_range_is_refused_by_name_and_value(info, options):
    (name, value), *_ = options.items()
    # of a pair, the message names the one that is wrong
    values = [repr(v) for v in value] if isinstance(value, tuple) else [repr(value)]
    with pytest.raises(ValueError, match=name) as refused:
        info.build([parameter((2,))], **options)
    assert any(v in str(refused.value) for v in values)


@pytest.mark.parametrize(("info", "options"), WRONG)
def test_a_value_out_of_range_is_refused_in_a_group(info, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        info.build([{"params": [parameter((2,))], **options}])


@pytest.mark.parametrize(
    ("info", "options"),
    [
        pytest.param(info, options, id=f"{info}-{options}")
        for info in OPTIMIZERS
        for options in COMMON_WRONG_TYPE + info.wrong_type
    ],
)
def test_a_value_of_another_type_is_refused_by_name(info, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        info.build([parameter((2,))], **options)


@each_optimizer
def test_a_learning_rate_is_one_number(info):
    info.build([parameter((2,))], lr=torch.tensor(1e-3))
    info.build([parameter((2,))], lr=torch.tensor([1e-3]))
    with pytest.raises(ValueError, match="lr"):
        info.build([parameter((2,))], lr=torch.tensor([1e-3, 1e-4]))
    for value in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="lr"):
            info.build([parameter((2,))], lr=torch.tensor(value))


@each_optimizer
def test_zero_is_a_learning_rate(info):
    """Schedulers pass through it, and a checkpoint library takes a step with it."""
    p = parameter((3,))
    before = p.detach().clone()
    optimizer = info.make([p], lr=0.0)
    p.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(p, before)
    assert int(optimizer.state[p]["step"]) == 1


@each_optimizer
def test_an_unknown_keyword_is_refused(info):
    with pytest.raises(TypeError, match="weight_decays"):
        info.build([parameter((2,))], weight_decays=0.1)


@each_optimizer
def test_an_unknown_option_in_a_group_is_refused_with_the_closest_one(info):
    with pytest.raises(ValueError, match=r"wieght_decay.*weight_decay"):
        info.build([{"params": [parameter((2,))], "wieght_decay": 0.1}])


@each_optimizer
@pytest.mark.parametrize("option", ["foreach", "fused", "capturable", "differentiable"])
def test_an_option_of_torchs_own_optimizers_is_refused(info, option):
    with pytest.raises(TypeError, match=option):
        info.build([parameter((2,))], **{option: True})
    with pytest.raises(ValueError, match=option):
        info.build([{"params": [parameter((2,))], option: True}])


@each_optimizer
def test_the_first_keywords_are_torchs_in_torchs_order(info):
    """So that a positional call of AdamW means the same here; one that takes a model begins with that."""
    names = list(inspect.signature(info.cls).parameters)
    assert tuple(names[: len(info.first)]) == info.first
    keyword_only = [p for p in inspect.signature(info.cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert {"maximize", "backend", "state_dtype"} <= {p.name for p in keyword_only}


@each_optimizer
def test_the_options_of_a_group_are_the_arguments_of_the_class(info):
    """Nothing is hidden in a group and no argument is lost on the way."""
    arguments = set(inspect.signature(info.cls).parameters) - {"model", "params", "loss_scale"}
    optimizer = info.build([parameter((2,))])
    assert set(optimizer.defaults) == arguments
    assert set(optimizer.param_groups[0]) - {"param_names"} == arguments | {"params"}


def test_the_defaults_are_the_papers():
    options = fisheropt.FAdam([parameter((2,))]).defaults
    paper = {"betas": (0.9, 0.999), "eps": 1e-8, "eps2": 0.01, "clip": 1.0, "weight_decay": 1e-3, "rho": 0.5}
    assert {name: options[name] for name in paper} == paper


@each_optimizer
def test_a_backend_that_is_not_here_is_refused_with_what_to_do(info):
    with pytest.raises(RuntimeError, match=r"triton.*cpu"):
        info.build([parameter((2,))], backend="triton")


@each_optimizer
@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_an_optimizer_says_which_backend_runs_each_parameter(info, backend):
    optimizer = info.build([parameter((2,)), parameter((3, 4))], backend=backend)
    assert optimizer.backends() == {"0.0": backend, "0.1": backend}
    named = info.build([("weight", parameter((2,)))], backend=backend)
    assert named.backends() == {"weight": backend}


@each_optimizer
def test_saying_which_backend_runs_allocates_no_state(info):
    optimizer = info.build([parameter((2,))])
    optimizer.backends()
    assert len(snapshot(optimizer)) == 1


@each_optimizer
def test_an_option_may_change_between_steps(info):
    """A group is a dict that users write to: the value of the moment counts."""
    (p, q), g = (parameter((3,)), parameter((3,))), torch.ones(3)
    first, second = info.make([p], lr=0.1), info.make([q], lr=0.1)
    for optimizer, lr in ((first, 0.1), (second, 0.3)):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.param_groups[0]["params"][0].grad = g.clone()
        optimizer.step()
    start = parameter((3,))
    torch.testing.assert_close((q - start) / (p - start), torch.full((3,), 3.0))


@each_optimizer
def test_the_repr_names_the_class_and_its_options(info):
    text = repr(info.build([parameter((2,))], lr=0.125))
    assert text.startswith(info.name)
    assert "0.125" in text
