"""Options and parameter groups, as far as they come from layers: what any optimizer owes is in tests/contract."""

import inspect

import pytest
import torch
from tests.adafisher.nets import apart, data, loss_of, make, numbers, same_bits, train
from torch import nn

from fisheropt import AdaFisher, AdaFisherW


def test_the_defaults_are_the_papers_and_what_may_be_given_by_position():
    parameters = inspect.signature(AdaFisher).parameters
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", "lr", "beta", "gammas", "damping", "weight_decay"]
    assert parameters == inspect.signature(AdaFisherW).parameters
    group = AdaFisher(nn.Linear(2, 2)).param_groups[0]
    paper = {"beta": 0.9, "gammas": (0.8, 0.8), "damping": 1e-3, "weight_decay": 0.0, "normalize": "after"}
    assert {name: group[name] for name in paper} == paper


def test_decay_is_the_classes_affair_and_no_option():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="unknown option 'decoupled'"):
        AdaFisher(net, params=[{"params": net.parameters(), "decoupled": True}])


def test_groups_have_their_own_options():
    """No decay for biases, another rate for the head: a layer's weight and bias in different groups."""
    net = make("mlp")
    weights = [p for p in net.parameters() if p.dim() > 1]
    others = [(name, p) for name, p in net.named_parameters() if p.dim() <= 1]
    optimizer = AdaFisherW(
        net, lr=1e-5, params=[{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 2e-5, "damping": 0.1}]
    )
    singles = {}
    for options in ({"lr": 1e-5, "weight_decay": 0.1}, {"lr": 2e-5, "damping": 0.1}):
        twin = make("mlp")
        single = AdaFisherW(twin, **options)
        train(twin, single, data("mlp", 1))
        singles[len(singles)] = dict(twin.named_parameters())
    train(net, optimizer, data("mlp", 1))
    for name, p in net.named_parameters():
        assert torch.equal(p, singles[0 if p.dim() > 1 else 1][name])


@pytest.mark.parametrize("option", [{"gammas": (0.5, 0.5)}, {"update_every": 3}, {"normalize": "before"}])
def test_what_belongs_to_layers_is_the_same_in_all_groups(option):
    net = make("mlp")
    first, *rest = net.parameters()
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be the same in all groups"):
        AdaFisher(net, params=[{"params": [first]}, {"params": rest, **option}])
    optimizer = AdaFisher(net, params=[first])
    with pytest.raises(ValueError, match="must be the same"):
        optimizer.add_param_group({"params": rest, **option})
    optimizer.add_param_group({"params": rest})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, len(rest)]


def test_a_model_without_parameters_is_refused_as_torch_refuses_an_empty_list():
    with pytest.raises(ValueError, match="empty parameter list"):
        AdaFisher(nn.ReLU())


def test_layers_that_a_model_is_given_later_are_watched_from_then_on():
    """A new head, as in fine-tuning. What is known of the old layers stays."""
    net = make("mlp")
    optimizer = AdaFisher(net, lr=1e-5)
    batches = data("mlp", 4)
    train(net, optimizer, batches[:2])
    net.append(nn.Linear(2, 3, dtype=torch.float64))
    optimizer.add_param_group({"params": net[-1].parameters(), "lr": 1e-4})
    train(net, optimizer, batches[2:])
    factors = optimizer.state["fisher"]["factors"]
    assert (factors["0.weight"]["updates"], factors["5.weight"]["updates"]) == (4, 2)
    assert optimizer.curvature_summary()["5.bias"].kind == "kronecker"
    assert optimizer.param_groups[1]["param_names"] == ["5.weight", "5.bias"]
    twin = make("mlp")
    twin.append(nn.Linear(2, 3, dtype=torch.float64))
    again = AdaFisher(twin, params=[{"params": list(m.parameters())} for m in (twin[:-1], twin[-1])])
    again.load_state_dict(optimizer.state_dict())
    assert same_bits(*({k: v for k, v in numbers(o).items() if " of " in k} for o in (optimizer, again)))
    assert len(net[0]._forward_hooks) == 1


def test_parameters_of_another_model_are_refused():
    with pytest.raises(ValueError, match="not one of the model's"):
        AdaFisher(nn.Linear(2, 2), params=nn.Linear(2, 2).parameters())
    optimizer = AdaFisher(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not one of the model's"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_factors_are_updated_in_the_first_step_and_every_so_many_after_it():
    net = make("mlp")
    optimizer = AdaFisher(net, update_every=3)
    updates = []
    for x in data("mlp", 7):
        train(net, optimizer, [x])
        updates.append(optimizer.state["fisher"]["factors"]["0.weight"]["updates"])
    assert updates == [1, 1, 1, 2, 2, 2, 3]


def test_update_every_may_change_between_steps():
    net = make("mlp")
    optimizer = AdaFisher(net)
    updates = []
    for i, x in enumerate(data("mlp", 6)):
        optimizer.param_groups[0]["update_every"] = 1 if i < 3 else 4
        train(net, optimizer, [x])
        updates.append(optimizer.state["fisher"]["factors"]["0.weight"]["updates"])
    assert updates == [1, 2, 3, 3, 4, 4]


def test_between_updates_the_hooks_do_nothing():
    net = make("mlp")
    optimizer = AdaFisher(net, update_every=2)
    train(net, optimizer, data("mlp", 1))
    y = net[0](data("mlp", 1)[0])
    assert not y._backward_hooks
    train(net, optimizer, data("mlp", 1))
    assert net[0](data("mlp", 1)[0])._backward_hooks


def test_a_step_without_any_gradient_does_nothing():
    net = make("mlp")
    optimizer = AdaFisher(net, update_every=2)
    before = numbers(optimizer)
    assert optimizer.step() is None
    assert same_bits(before, numbers(optimizer))
    assert not optimizer.state
    train(net, optimizer, data("mlp", 1))
    assert optimizer.state["fisher"]["steps"] == 1


def test_the_same_training_gives_the_same_bits():
    trained = []
    for _ in range(2):
        net = make("convnet")
        optimizer = AdaFisher(net, lr=1e-5)
        train(net, optimizer, data("convnet"))
        trained.append(numbers(optimizer))
    assert same_bits(*trained)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_finite_gradient_leaves_anything_that_is_not_finite(scale, dtype):
    """The parameters stay in place until the last step, after which no net would give finite gradients."""
    net = make("mlp", dtype)
    optimizer = AdaFisherW(net, lr=0.0, weight_decay=0.1)
    for i, x in enumerate(data("mlp", 3, dtype=dtype)):
        optimizer.param_groups[0]["lr"] = 1e-3 if i == 2 else 0.0
        optimizer.zero_grad()
        (scale * net(x).sin().mean()).backward()
        optimizer.step()
    assert all(value.isfinite().all() for value in numbers(optimizer).values())


def test_a_gradient_of_zero_moves_nothing():
    net = make("mlp")
    optimizer = AdaFisher(net)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    (0.0 * loss_of(net, data("mlp", 1)[0])).backward()
    optimizer.step()
    assert all(torch.equal(p, start[name]) for name, p in net.named_parameters())


def test_memory_layout_makes_no_difference():
    net, twin = make("convnet"), make("convnet").to(memory_format=torch.channels_last)
    plain, last = AdaFisherW(net, lr=1e-5, weight_decay=0.1), AdaFisherW(twin, lr=1e-5, weight_decay=0.1)
    assert not twin[3].weight.is_contiguous()
    train(net, plain, data("convnet"))
    train(twin, last, [x.contiguous(memory_format=torch.channels_last) for x in data("convnet")])
    assert not twin[3].weight.is_contiguous()
    assert apart(numbers(plain), numbers(last)) <= 1e-11


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"])
def test_the_momentum_can_be_kept_small(state_dtype):
    net, twin = nn.Linear(128, 64), nn.Linear(128, 64)
    twin.load_state_dict(net.state_dict())
    small, full = AdaFisher(net, lr=1e-4, state_dtype=state_dtype), AdaFisher(twin, lr=1e-4)
    start = net.weight.detach().clone()
    for x in torch.randn(5, 8, 128):
        train(net, small, [x])
        train(twin, full, [x])
    bytes_of = {o: sum(v.nbytes for v in o.state[m.weight].values()) for o, m in ((small, net), (full, twin))}
    assert bytes_of[small] <= 0.51 * bytes_of[full]
    moves = [(model.weight - start).detach() for model in (net, twin)]
    torch.testing.assert_close(*moves, rtol=0.0, atol=0.05 * float(moves[1].abs().max()))


def test_gradients_set_by_hand_have_no_factors_and_are_refused():
    net = nn.Linear(2, 2)
    optimizer = AdaFisher(net)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="set by hand"):
        optimizer.step()
