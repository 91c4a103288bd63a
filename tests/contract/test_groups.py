"""Parameter groups, under torch's own rules."""

import pytest
import torch
from tests.cases import each_optimizer, gradients, numbers, parameter, same_bits, train

SHAPES = ((3,), (4, 5), ())


def params(dtype=torch.float32):
    return [parameter(shape, dtype=dtype, seed=i) for i, shape in enumerate(SHAPES)]


def grads(tensors, steps=3, seed=0):
    return {
        p: gradients(tuple(p.shape), scale=0.1, steps=steps, dtype=p.dtype, seed=seed + i)
        for i, p in enumerate(tensors)
    }


@each_optimizer
def test_an_empty_list_is_refused_as_torch_refuses_it(info):
    with pytest.raises(ValueError, match="empty parameter list"):
        info.build([])


@each_optimizer
def test_an_empty_group_is_allowed(info):
    p = parameter((2,))
    optimizer = info.make([{"params": []}, {"params": [p]}])
    p.grad = torch.ones(2)
    optimizer.step()
    assert int(optimizer.state[p]["step"]) == 1


@each_optimizer
def test_a_bare_tensor_and_things_that_are_no_tensors_are_refused(info):
    with pytest.raises(TypeError, match="iterable"):
        info.build(parameter((2,)))
    with pytest.raises(TypeError, match="float"):
        info.build([1.5])


@each_optimizer
def test_a_tensor_that_is_computed_is_refused(info):
    with pytest.raises(ValueError, match="non-leaf"):
        info.build([parameter((2,)) * 2])


@each_optimizer
def test_a_parameter_may_be_given_once(info):
    p = parameter((2,))
    with pytest.warns(UserWarning, match="duplicate"):
        info.build([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        info.build([{"params": [p]}, {"params": [p]}])
    optimizer = info.make([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


@each_optimizer
def test_integers_are_refused_in_words(info):
    with pytest.raises(TypeError, match=r"torch\.int64"):
        info.build([torch.zeros(2, dtype=torch.int64)])


@each_optimizer
def test_complex_parameters_are_refused_with_what_to_do_and_leave_the_optimizer_as_it_was(info):
    complex_ = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(TypeError, match=r"complex.*view_as_real"):
        info.build([complex_])
    optimizer = info.make([parameter((2,))])
    late = parameter((3,))
    info.admit(optimizer, late, complex_)
    with pytest.raises(TypeError, match="complex"):
        optimizer.add_param_group({"params": [late, complex_]})
    assert len(optimizer.param_groups) == 1
    assert not optimizer.state


@each_optimizer
def test_a_group_that_is_refused_can_be_corrected_and_added(info):
    optimizer, p = info.make([parameter((2,))]), parameter((3,))
    info.admit(optimizer, p)
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [p], "lr": -1.0})
    optimizer.add_param_group({"params": [p], "lr": 1.0})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


@each_optimizer
def test_a_generator_and_named_parameters_are_taken(info):
    model = torch.nn.Linear(2, 3)
    assert len(info.build(p for p in model.parameters()).param_groups[0]["params"]) == 2
    optimizer = info.build(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


@each_optimizer
def test_each_group_has_its_own_options(info):
    """A group with options is an optimizer with those options."""
    options = [{"lr": 0.1}, *info.with_other_options]
    together, alone = params(), params()
    optimizer = info.make([{"params": [p], **o} for p, o in zip(together, options, strict=True)])
    train(optimizer, grads(together))
    single = [info.make([p], **o) for p, o in zip(alone, options, strict=True)]
    given = grads(alone)
    for one, p in zip(single, alone, strict=True):
        train(one, {p: given[p]})
    for one, p, q in zip(single, alone, together, strict=True):
        assert same_bits(numbers(optimizer, q), numbers(one, p))


@each_optimizer
def test_a_group_added_after_steps_starts_at_its_own_first_step(info):
    early, late = parameter((3,)), parameter((4, 5), seed=1)
    optimizer = info.make([early], lr=0.01)
    train(optimizer, grads([early]))
    info.admit(optimizer, late)
    optimizer.add_param_group({"params": [late], "lr": 0.1})
    train(optimizer, grads([early, late], seed=7))
    assert int(optimizer.state[early]["step"]) == 6
    assert int(optimizer.state[late]["step"]) == 3
    alone = parameter((4, 5), seed=1)
    train(info.make([alone], lr=0.1), {alone: grads([early, late], seed=7)[late]})
    assert torch.equal(late, alone)


@each_optimizer
def test_keys_of_schedulers_and_of_the_caller_are_kept(info):
    """timm writes lr_scale, torch's schedulers initial_lr; a key of one's own starts with an underscore."""
    group = {"params": [parameter((2,))], "lr_scale": 0.5, "initial_lr": 1e-3, "_mine": "kept"}
    optimizer = info.make([group])
    assert optimizer.param_groups[0]["lr_scale"] == 0.5
    assert optimizer.param_groups[0]["_mine"] == "kept"
    assert optimizer.state_dict()["param_groups"][0]["_mine"] == "kept"
