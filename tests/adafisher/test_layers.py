"""SPEC D17 to D19 by name: layers of every kind, tied weights, and the ways a model can be used."""

import functools

import pytest
import torch
from tests.adafisher.nets import (
    Onlooker,
    OracleRun,
    apart,
    data,
    loss_of,
    make,
    numbers,
    relative_error,
    same_bits,
    train,
)
from tests.oracle import adafisher as oracle
from torch import nn
from torch.utils.checkpoint import checkpoint

from fisheropt import AdaFisher, AdaFisherW, step_in_backward

DOUBLE = {"dtype": torch.float64}


def step(net, x, **options):
    optimizer = AdaFisher(net, **options)
    net(x).square().mean().backward()
    optimizer.step()
    return optimizer


# -- D17: layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.BatchNorm2d(4), (6, 4, 2, 2)),
        (nn.BatchNorm3d(4), (6, 4, 1, 2, 2)),
        (nn.InstanceNorm1d(4, affine=True), (6, 4, 3)),
        (nn.LayerNorm(4), (6, 4)),
        (nn.LayerNorm((2, 4)), (6, 2, 4)),
        (nn.GroupNorm(2, 4), (6, 4, 3)),
        (nn.RMSNorm(4), (6, 4)),
        (nn.ConvTranspose1d(4, 2, 3), (6, 4, 5)),
        (nn.Bilinear(4, 4, 2), (6, 4)),
        (nn.PReLU(4), (6, 4)),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else None,
)
def test_norms_and_other_layers_have_the_squares_of_their_own_gradients(net, shape):
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.rand_like(p))
    x = torch.randn(shape, **DOUBLE)
    optimizer = AdaFisher(net, lr=1e-4)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    y = net(x, x) if isinstance(net, nn.Bilinear) else net(x)
    y.pow(3).mean().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        g = p.grad.numpy()
        F = oracle.elementwise(oracle.average(None, g**2))
        expected, _ = oracle.adafisher(start[name].numpy(), g, F=F, lr=1e-4)
        assert relative_error(p, expected) <= 1e-12
        assert optimizer.curvature_summary()[name].kind == "elementwise"


def test_every_parameter_of_a_transformer_is_trained():
    """The output projection of attention is a Linear that is never called; the others are."""
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **DOUBLE)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = AdaFisher(net)
    loss_of(net, torch.randn(2, 5, 8, **DOUBLE) * 2).backward()
    optimizer.step()
    assert all(not torch.equal(p, start[name]) for name, p in net.named_parameters())
    kinds = {name: summary.kind for name, summary in optimizer.curvature_summary().items()}
    assert kinds.keys() == start.keys()
    assert {name for name, kind in kinds.items() if kind == "kronecker"} == {
        f"linear{i}.{role}" for i in (1, 2) for role in ("weight", "bias")
    }


def test_layers_are_paired_by_identity_and_not_by_order_or_shape():
    """Three layers of one shape, called in another order than they were made."""

    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 3, **DOUBLE) for _ in range(3))

        def forward(self, x):
            return self.b(self.a(self.c(x)))

    net = Shuffled()
    x = torch.randn(5, 3, **DOUBLE)
    known = step(net, x).state["fisher"]["factors"]
    torch.testing.assert_close(known["c.weight"]["H"][:3], 0.2 * x.square().mean(0), rtol=1e-12, atol=0.0)
    assert not torch.equal(known["a.weight"]["H"], known["c.weight"]["H"])


def test_a_parametrized_weight_is_trained_elementwise_and_its_bias_with_the_layer():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4, **DOUBLE))
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = step(net, torch.randn(5, 3, **DOUBLE))
    kinds = {name: summary.kind for name, summary in optimizer.curvature_summary().items()}
    assert all(not torch.equal(p, start[name]) for name, p in net.named_parameters())
    assert kinds.pop("bias") == "kronecker"
    assert set(kinds.values()) == {"elementwise"}


def test_a_single_feature_or_equal_features_have_a_factor_of_one():
    """D15: where max = min, minmax is 1."""
    net = nn.Linear(1, 1, bias=False, **DOUBLE)
    optimizer = step(net, torch.randn(5, 1, **DOUBLE), damping=0.5)
    assert optimizer.curvature_summary()["weight"].min == 1.5


# -- D18: tied weights ------------------------------------------------------------------------------------------------


def test_tied_weights_sum_their_factors_each_in_its_own_orientation():
    """The twenty steps of test_rule.py have such a net; here the sum itself."""
    net = make("tied")
    optimizer = AdaFisher(net, damping=1e-3)
    loss_of(net, data("tied", 1)[0]).backward()
    optimizer.step()
    known = optimizer.state["fisher"]["factors"]
    table, head = known["table.weight"], known["head.weight"]
    of_table = oracle.kronecker(table["H"].numpy(), table["S"].numpy(), damping=0.0).T
    of_head = oracle.kronecker(head["H"].numpy(), head["S"].numpy(), damping=0.0)[:, :-1]
    summary = optimizer.curvature_summary()["table.weight"]
    F = of_table + of_head + 1e-3
    assert summary.min == pytest.approx(F.min(), rel=1e-12)
    assert summary.max == pytest.approx(F.max(), rel=1e-12)
    assert "head.weight" not in optimizer.curvature_summary()


def test_two_layers_that_share_a_weight_and_not_a_bias():
    first, second = nn.Linear(3, 3, **DOUBLE), nn.Linear(3, 3, **DOUBLE)
    second.weight = first.weight
    optimizer = step(nn.Sequential(first, nn.Tanh(), second), torch.randn(5, 3, **DOUBLE))
    known = optimizer.state["fisher"]["factors"]
    Fs = [oracle.kronecker(known[k]["H"].numpy(), known[k]["S"].numpy(), damping=0.0) for k in ("0.weight", "2.weight")]
    summary = optimizer.curvature_summary()
    assert summary["0.weight"].max == pytest.approx((Fs[0] + Fs[1])[:, :-1].max() + 1e-3, rel=1e-12)
    assert summary["2.bias"].max == pytest.approx(Fs[1][:, -1].max() + 1e-3, rel=1e-12)


# -- D19: ways to use a model -----------------------------------------------------------------------------------------


def test_frozen_parameters_stay_and_can_be_thawed():
    net = make("mlp")
    net[0].requires_grad_(False)
    optimizer = AdaFisher(net, lr=1e-3)
    start = net[0].weight.detach().clone()
    batches = data("mlp", 4)
    train(net, optimizer, batches[:2])
    assert torch.equal(net[0].weight, start)
    assert "0.weight" not in optimizer.state["fisher"]["factors"]
    net[0].requires_grad_(True)
    train(net, optimizer, batches[2:])
    assert not torch.equal(net[0].weight, start)
    assert optimizer.state["fisher"]["factors"]["0.weight"]["updates"] == 2


def test_a_frozen_weight_leaves_its_bias_with_the_layer():
    net, twin = make("mlp"), make("mlp")
    net[0].weight.requires_grad_(False)
    some, both = AdaFisher(net), AdaFisher(twin)
    for model, optimizer in ((net, some), (twin, both)):
        train(model, optimizer, data("mlp", 1))
    assert torch.equal(net[0].bias, twin[0].bias)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2, **DOUBLE), nn.Linear(3, 2, **DOUBLE)

    def forward(self, x, which):
        return getattr(self, which)(x)


def test_a_module_that_is_not_called_keeps_its_parameters_and_factors():
    net = Branches()
    optimizer = AdaFisher(net)
    x = torch.randn(4, 3, **DOUBLE)
    for which in ("left", "right", "left"):
        before = numbers(optimizer)
        optimizer.zero_grad()
        net(x, which).square().mean().backward()
        optimizer.step()
        other = "right" if which == "left" else "left"
        after = numbers(optimizer)
        assert all(torch.equal(after[key], before[key]) for key in before if other in key)
    factors = optimizer.state["fisher"]["factors"]
    assert [factors[f"{side}.weight"]["updates"] for side in ("left", "right")] == [2, 1]


def test_a_layer_called_for_the_first_time_between_updates_goes_elementwise_until_the_next():
    net = Branches()
    optimizer = AdaFisher(net, update_every=3)
    x = torch.randn(4, 3, **DOUBLE)
    kinds = []
    for which in ("left", "right", "right", "right"):
        optimizer.zero_grad()
        net(x, which).square().mean().backward()
        start = net.right.weight.detach().clone()
        optimizer.step()
        assert torch.equal(net.right.weight, start) == (which == "left")
        kinds.append({name: s.kind for name, s in optimizer.curvature_summary().items()}.get("right.weight"))
    assert kinds == [None, "elementwise", "elementwise", "kronecker"]
    assert "f" not in optimizer.state["fisher"]["factors"]["right.weight"]
    assert "right.bias" not in optimizer.state["fisher"]["factors"]


def test_a_layer_trained_in_eval_mode_goes_elementwise():
    net = make("mlp")
    net[0].eval()
    optimizer = AdaFisher(net)
    train(net, optimizer, data("mlp", 2))
    kinds = {name: summary.kind for name, summary in optimizer.curvature_summary().items()}
    assert kinds["0.weight"] == "elementwise"
    assert kinds["4.weight"] == "kronecker"


class Ways(nn.Module):
    """One function, used in different ways."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, **DOUBLE), nn.Linear(4, 2, **DOUBLE)
        self.way, self.in_place = way, nn.ReLU(inplace=True)

    def forward(self, x):
        if self.way == "in place":
            h = 2.0 * self.in_place(self.first(x))
        elif self.way == "keywords":
            h = 2.0 * self.first(input=x).relu()
        elif self.way == "checkpoint":
            h = checkpoint(lambda x: 2.0 * self.first(x).relu(), x, use_reentrant=False)
        else:
            h = 2.0 * self.first(x).relu()
        y = self.second(input=h) if self.way == "keywords" else self.second(h)
        return y.sub_(1.0) if self.way == "in place" else y - 1.0


@pytest.mark.parametrize("way", ["in place", "keywords", "checkpoint"])
def test_other_ways_to_compute_the_same_give_the_same_step(way):
    trained = []
    for this in ("plain", way):
        torch.manual_seed(0)
        net = Ways(this)
        optimizer = AdaFisherW(net, lr=1e-5, weight_decay=0.1)
        train(net, optimizer, data("mlp", 4))
        trained.append(numbers(optimizer))
    assert apart(*trained) <= 1e-13


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of its graphs
def test_a_model_compiled_afterwards_takes_the_same_steps(compiler):
    trained = []
    for compile_ in (lambda net: net, functools.partial(torch.compile, backend="aot_eager")):
        net = make("mlp")
        optimizer = AdaFisher(net, lr=1e-5, update_every=2)
        train(compile_(net), optimizer, data("mlp", 4))
        assert optimizer.state["fisher"]["factors"]["0.weight"]["updates"] == 2
        trained.append(numbers(optimizer))
    assert apart(*trained) <= 1e-12


def test_a_model_compiled_before_is_refused_with_what_to_do(compiler):
    with pytest.raises(ValueError, match="build AdaFisher with the plain model first, then compile"):
        AdaFisher(torch.compile(make("mlp"), backend="eager"))
    net = make("mlp")
    net.compile(backend="eager")
    with pytest.raises(ValueError, match="plain model first"):
        AdaFisher(net)


def test_a_model_that_was_compiled_and_has_forgotten_to_say_so_is_noticed(compiler):
    net = make("mlp")
    compiled = torch.compile(net, backend="eager")
    loss_of(compiled, data("mlp")[0]).backward()
    net.zero_grad()
    optimizer = AdaFisher(net)
    loss_of(compiled, data("mlp")[0]).backward()
    before = numbers(optimizer)
    with pytest.raises(RuntimeError, match=r"no call of any layer was seen.*compile"):
        optimizer.step()
    assert all(torch.equal(numbers(optimizer)[name], value) for name, value in before.items())


def test_wrappers_that_cannot_be_watched_are_refused():
    with pytest.raises(TypeError, match="use DistributedDataParallel"):
        AdaFisher(nn.DataParallel(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="takes the model, not its parameters"):
        AdaFisher(nn.Linear(2, 2).parameters())


def test_a_lazy_layer_is_refused_until_it_has_a_shape():
    net = nn.LazyLinear(2)
    with pytest.raises(ValueError, match="weight has no shape yet; call the model once"):
        AdaFisher(net)
    net(torch.ones(1, 3))
    assert step(net, torch.ones(2, 3)).curvature_summary()["weight"].kind == "kronecker"


def test_step_in_backward_is_refused_in_the_first_backward():
    net = make("mlp")
    step_in_backward(net, lambda params: AdaFisher(net, params=params))
    with pytest.raises(TypeError, match="call step\\(\\) after backward"):
        loss_of(net, data("mlp")[0]).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_stepped_in_float32_and_rounded_once(dtype):
    net = make("mlp", torch.float32).to(dtype)
    onlooker, optimizer, expected = Onlooker(net), AdaFisher(net, lr=1e-3), OracleRun(net, lr=1e-3)
    start = net[0].weight.detach().clone()
    loss_of(net, data("mlp", 1, dtype=dtype)[0]).backward()
    expected.step(*onlooker.take())
    optimizer.step()
    assert not torch.equal(net[0].weight, start)
    for name, p in net.named_parameters():
        assert p.dtype == dtype
        assert optimizer.state[p]["m"].dtype == torch.float32
        assert relative_error(p, expected.p[name]) <= torch.finfo(dtype).eps
        assert relative_error(optimizer.state[p]["m"], expected.state[name]["m"]) <= 2e-6


def test_autocast_runs_the_same_rule():
    net, twin = make("mlp", torch.float32), make("mlp", torch.float32)
    mixed, plain = AdaFisher(net, lr=1e-5), AdaFisher(twin, lr=1e-5)
    x = data("mlp", 1, dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(net, x)
    loss.backward()
    loss_of(twin, x).backward()
    mixed.step()
    plain.step()
    known, exact = (o.state["fisher"]["factors"]["0.weight"] for o in (mixed, plain))
    torch.testing.assert_close(known["H"], exact["H"], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(known["S"], exact["S"], rtol=0.1, atol=0.0)


def test_an_empty_batch_changes_no_factor():
    net = nn.Linear(3, 2)
    optimizer = step(net, torch.randn(4, 3))
    before = numbers(optimizer)
    optimizer.zero_grad()
    net(torch.empty(0, 3)).sum().backward()
    optimizer.step()
    after = numbers(optimizer)
    assert same_bits(*({k: v for k, v in n.items() if k[:2] in ("H ", "S ")} for n in (before, after)))
