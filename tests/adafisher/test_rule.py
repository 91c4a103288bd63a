"""Twenty steps of small nets against the oracle: every parameter, momentum, factor and metric."""

import numpy as np
import pytest
import torch
from tests.adafisher.nets import NETS, Onlooker, OracleRun, apart, data, loss_of, make, numbers, relative_error

from fisheropt import AdaFisher, AdaFisherW

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
STEPS = 20
PUBLISHED = {"normalize": "before", "gammas": (0.08, 0.992)}
VARIATIONS = {
    "defaults": {},
    "decay": {"weight_decay": 0.1},
    "gammas": {"gammas": (0.5, 0.9), "damping": 0.03, "beta": 0.5},
    "no momentum": {"beta": 0.0, "weight_decay": 0.1},
    "seldom": {"update_every": 7, "weight_decay": 0.1},
    "published": {**PUBLISHED, "update_every": 6},
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
@pytest.mark.parametrize("kind", NETS)
def test_twenty_steps_are_the_oracles(kind, cls, variation, dtype):
    options = {"lr": 1e-5, **VARIATIONS[variation]}
    net = make(kind, dtype)
    onlooker = Onlooker(net)
    optimizer = cls(net, **options, backend="eager")
    expected = OracleRun(net, **options, decoupled=cls is AdaFisherW)
    for x in data(kind, STEPS, dtype=dtype):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        expected.step(*onlooker.take())
        optimizer.step()
    compare(net, optimizer, expected, TOLERANCE[dtype])


def compare(net, optimizer, expected, tolerance):
    known = optimizer.state["fisher"]["factors"]
    summaries = optimizer.curvature_summary()
    damping = optimizer.param_groups[0]["damping"]
    for name, p in net.named_parameters():
        state = optimizer.state[p]
        assert int(state["step"]) == STEPS
        assert relative_error(p, expected.p[name]) <= tolerance
        if optimizer.param_groups[0]["beta"] > 0:
            assert relative_error(state["m"], expected.state[name]["m"]) <= tolerance
        else:
            assert set(state) == {"step"}
        if summaries[name].kind == "elementwise":
            assert relative_error(known[name]["f"], expected.f[name]) <= tolerance
        F = expected.metric(name)
        assert summaries[name].min == pytest.approx(F.min(), rel=1e3 * tolerance)
        assert summaries[name].max == pytest.approx(F.max(), rel=1e3 * tolerance)
        assert summaries[name].near_damping == pytest.approx(np.mean(F - damping <= 0.1 * damping))
    for layer, (H, S) in expected.factors.items():
        assert relative_error(known[f"{layer}.weight"]["H"], H) <= tolerance
        assert relative_error(known[f"{layer}.weight"]["S"], S) <= tolerance
        assert known[f"{layer}.weight"]["updates"] == -(-STEPS // expected.update_every)


def test_the_oracles_factors_matter_to_the_comparison():
    """Or it would prove nothing: other factors than those seen take the parameters elsewhere."""
    net = make("mlp")
    onlooker, optimizer = Onlooker(net), AdaFisher(net, lr=1e-4)
    expected = OracleRun(net, lr=1e-4)
    for x in data("mlp", STEPS):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        layers, grads = onlooker.take()
        expected.step({name: (h, s[::-1] * [1.01, *[1] * (s.shape[1] - 1)]) for name, (h, s) in layers.items()}, grads)
        optimizer.step()
    assert relative_error(net[0].weight, expected.p["0.weight"]) > 1e-6


def test_the_published_factors_leave_the_metric_at_its_damping():
    """D14: minmax first and a small average: F stays within 8 % of lambda, and the method is momentum SGD."""
    net = make("mlp")
    twin = make("mlp")
    optimizer = AdaFisher(net, lr=1e-5, **PUBLISHED)
    batches = data("mlp", 1) * 12
    for x in batches[:8]:
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()
    for name, summary in optimizer.curvature_summary().items():
        assert summary.min >= 1e-3
        if summary.kind == "kronecker":
            assert summary.max < 1.08e-3, name
            assert summary.near_damping == 1.0
    sgd = torch.optim.SGD(twin.parameters(), lr=1e-2, momentum=0.9, dampening=0.9)
    twin.load_state_dict(net.state_dict())
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        sgd.state[q]["momentum_buffer"] = optimizer.state[p]["m"].clone()
    before = [p.detach().clone() for p in net.parameters()]
    for model, other in ((net, optimizer), (twin, sgd)):
        other.zero_grad()
        loss_of(model, batches[0]).backward()
        other.step()
    correction = 1 - 0.9**9
    for (name, p), q, start in zip(net.named_parameters(), twin.parameters(), before, strict=True):
        if optimizer.curvature_summary()[name].kind == "kronecker":
            torch.testing.assert_close((p - start) * correction, q - start, rtol=0.08, atol=1e-12)


def test_one_layers_metric_is_between_the_damping_and_one_more():
    net = make("convnet")
    optimizer = AdaFisher(net, damping=0.25)
    loss_of(net, data("convnet", 1)[0]).backward()
    optimizer.step()
    for summary in optimizer.curvature_summary().values():
        assert 0.25 <= summary.min <= summary.median <= summary.max <= 1.25 + 1e-15


def test_a_compiled_rule_is_the_eager_one_also_where_two_layers_share_a_weight(compiler):
    found = []
    for backend in ("compile", "eager"):
        net = make("tied")
        optimizer = AdaFisherW(net, lr=1e-5, weight_decay=0.1, backend=backend)
        assert set(optimizer.backends().values()) == {backend}
        for x in data("tied", 2):
            optimizer.zero_grad()
            loss_of(net, x).backward()
            optimizer.step()
        found.append(numbers(optimizer))
    assert apart(*found) <= 1e-12
