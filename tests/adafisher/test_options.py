"""Options and parameter groups: torch's rules, and those that come from layers."""

import inspect

import pytest
import torch
from tests.adafisher.nets import apart, data, loss_of, make, numbers, relative_error, same_bits, train
from torch import nn

from fisheropt import AdaFisher, AdaFisherW

each_class = pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])


@each_class
@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in ("lr", "weight_decay") for value in (-1.0, float("nan"), float("inf"))),
        *({"damping": value} for value in (0.0, -1e-3, float("nan"))),
        *({"beta": value} for value in (1.0, -0.1, float("nan"))),
        *({"gammas": value} for value in ((1.0, 0.5), (0.5, 1.0), (-0.1, 0.5))),
        {"update_every": 0},
        {"normalize": "never"},
        {"backend": "abacus"},
        {"state_dtype": torch.int32},
        {"seed": -1},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_name(cls, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cls(nn.Linear(2, 2), **wrong)
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cls(net, params=[{"params": net.parameters(), **wrong}])


@each_class
@pytest.mark.parametrize(
    "wrong",
    [{"lr": "fast"}, {"beta": None}, {"gammas": 0.8}, {"gammas": (0.8,)}, {"update_every": 1.5}, {"maximize": 1}],
    ids=str,
)
def test_a_value_of_another_type_is_refused_by_name(cls, wrong):
    with pytest.raises(TypeError, match=next(iter(wrong))):
        cls(nn.Linear(2, 2), **wrong)


@each_class
def test_the_signature_is_the_documented_one_and_every_option_is_in_the_groups(cls):
    parameters = inspect.signature(cls).parameters
    names = list(parameters)
    assert names[:7] == ["model", "lr", "beta", "gammas", "damping", "weight_decay", "update_every"]
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == names[:6]
    group = cls(nn.Linear(2, 2)).param_groups[0]
    assert set(group) == set(names) - {"model", "loss_scale"} | {"param_names"}
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


def test_parameters_of_another_model_are_refused():
    with pytest.raises(ValueError, match="not one of the model's"):
        AdaFisher(nn.Linear(2, 2), params=nn.Linear(2, 2).parameters())
    optimizer = AdaFisher(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not one of the model's"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_lists_that_torch_refuses_are_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="empty parameter list"):
        AdaFisher(net, params=[])
    with pytest.raises(TypeError):
        AdaFisher(net, params=[1.5])
    with pytest.raises(ValueError, match="more than one parameter group"):
        AdaFisher(net, params=[{"params": [net.weight]}, {"params": [net.weight]}])
    with pytest.raises(ValueError, match="empty parameter list"):
        AdaFisher(nn.ReLU())


def test_complex_and_sparse_are_refused_in_words():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))

    with pytest.raises(TypeError, match="view_as_real"):
        AdaFisher(Complex())
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = AdaFisher(table)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert not optimizer.state


def test_the_learning_rate_may_be_a_tensor_and_may_change():
    nets = [make("mlp") for _ in range(3)]
    numbered = AdaFisher(nets[0], lr=1e-5)
    tensor = AdaFisher(nets[1], lr=torch.tensor(1e-5, dtype=torch.float64))
    scheduled = AdaFisher(nets[2], lr=2e-5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 0.5 if step < 2 else 0.25)
    train(nets[0], numbered, data("mlp", 2))
    train(nets[1], tensor, data("mlp", 2))
    for x in data("mlp", 2):
        train(nets[2], scheduled, [x])
        scheduler.step()
    assert same_bits(numbers(numbered), numbers(tensor))
    assert same_bits(numbers(numbered), numbers(scheduled))
    assert scheduled.param_groups[0]["lr"] == 0.5e-5


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


def test_step_hooks_run_and_gradients_are_left_as_they_are():
    net = make("mlp")
    optimizer = AdaFisher(net, weight_decay=0.1, maximize=True)
    heard = []
    optimizer.register_step_pre_hook(lambda *_: heard.append("before"))
    optimizer.register_step_post_hook(lambda *_: heard.append("after"))
    loss_of(net, data("mlp", 1)[0]).backward()
    kept = [(p.grad, p.grad.clone(), p.grad._version) for p in net.parameters()]
    optimizer.step()
    assert heard == ["before", "after"]
    for p, (grad, bits, version) in zip(net.parameters(), kept, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, bits)
        assert grad._version == version


def test_the_same_training_gives_the_same_bits():
    trained = []
    for _ in range(2):
        net = make("convnet")
        optimizer = AdaFisher(net, lr=1e-5)
        train(net, optimizer, data("convnet"))
        trained.append(numbers(optimizer))
    assert same_bits(*trained)


def test_a_tensor_of_one_element_is_a_learning_rate_for_a_parameter_of_no_dimensions():
    net, twin = make("mlp"), make("mlp")
    one, number = (
        AdaFisherW(net, lr=torch.tensor([1e-5]), weight_decay=0.1),
        AdaFisherW(twin, lr=1e-5, weight_decay=0.1),
    )
    train(net, one, data("mlp", 2))
    train(twin, number, data("mlp", 2))
    assert all(
        relative_error(p, q.detach().numpy()) <= 1e-7 for p, q in zip(net.parameters(), twin.parameters(), strict=True)
    )


@each_class
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-5, total_steps=5, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            milestones=[2],
        ),
    ],
    ids=["cosine", "one cycle", "plateau", "warmup"],
)
def test_schedulers_run(cls, schedule):
    """And what they leave in the groups can be saved and loaded."""
    net = make("mlp")
    optimizer = cls(net, lr=1e-5)
    scheduler = schedule(optimizer)
    rates = []
    for x in data("mlp", 4):
        train(net, optimizer, [x])
        scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        rates.append(optimizer.param_groups[0]["lr"])
    assert len(set(rates)) >= 3
    cls(make("mlp")).load_state_dict(optimizer.state_dict())


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


def test_it_says_which_backend_runs_each_parameter():
    net = nn.Linear(2, 2)
    assert AdaFisher(net, backend="eager").backends() == {"weight": "eager", "bias": "eager"}
    text = repr(AdaFisherW(net, lr=0.125))
    assert text.startswith("AdaFisherW")
    assert "0.125" in text


def test_gradients_set_by_hand_have_no_factors_and_are_refused():
    net = nn.Linear(2, 2)
    optimizer = AdaFisher(net)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="set by hand"):
        optimizer.step()
