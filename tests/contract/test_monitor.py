"""Monitor: what it says against Algorithm 1 in NumPy, and that a run does not know of it."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fisheropt
from fisheropt import FAdafactor, FAdam, Monitor
from fisheropt.baselines import Adafactor, Adam, NaturalAdam
from fisheropt.second_moment import second_moment

OPTIMIZERS = {
    "fadam": FAdam,
    "fadam, bfloat16 state": lambda params: FAdam(params, state_dtype=torch.bfloat16, backend="eager"),
    "fadam, int8 state": lambda params: FAdam(params, state_dtype="int8", backend="eager"),
    "fadafactor": lambda params: FAdafactor(params, min_dim_size_to_factor=2, backend="eager"),
    "adam": lambda params: Adam(params, backend="eager"),
    "adafactor": lambda params: Adafactor(params, min_dim_size_to_factor=2),
    "naturaladam": NaturalAdam,
    "torch adamw": torch.optim.AdamW,
    "torch sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
}


def run(build, steps, watch=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 70))
    optimizer = build(model.parameters())
    monitor = None if watch is None else Monitor(optimizer, every=2, model=model, **watch)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer, monitor


def everything(model, optimizer):
    tensors = [*model.state_dict().values()]
    for p in model.parameters():
        tensors += [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    return [*tensors, torch.get_rng_state()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_a_monitor_has_the_bits_of_one_without(name, tmp_path):
    alone = everything(*run(OPTIMIZERS[name], 5)[:2])
    model, optimizer, monitor = run(OPTIMIZERS[name], 5, {"path": tmp_path / "log.jsonl"})
    watched = everything(model, optimizer)
    assert len(alone) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4]
    assert rows[-1] == json.loads(json.dumps(monitor.latest))
    assert set(rows[0]["parameters"]) == {name for name, _ in model.named_parameters()}
    fadams = name.startswith("fada")
    for row in rows:
        for one in row["parameters"].values():
            assert one["update_ratio"] > 0
            assert (one["clip"] is not None) == fadams
            assert (one["fisher_quantiles"] is not None) == (name != "torch sgd")


@pytest.mark.parametrize(("scale", "eps2"), [(1.0, 0.01), (1e-9, None), (1e-7, None)])
def test_the_numbers_are_those_of_algorithm_1(scale, eps2):
    rng = np.random.default_rng(0)
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "eps2": eps2, "clip": 0.8, "rho": 0.5, "weight_decay": 0.3}
    x = rng.normal(size=(6, 7))
    p = nn.Parameter(torch.tensor(x))
    optimizer = FAdam([p], **options)
    state = {"f": np.ones_like(x), "m": np.zeros_like(x)}
    with Monitor(optimizer, every=1) as monitor:
        for t in (1, 2, 3):
            g = scale * rng.normal(size=x.shape) * np.exp(rng.normal(size=x.shape))
            p.grad = torch.tensor(g)
            optimizer.step()
            before = x.copy()
            b2hat = 0.99 * (1 - 0.99 ** (t - 1)) / (1 - 0.99**t)
            state["f"] = b2hat * state["f"] + (1 - b2hat) * g**2
            ehat = 1e-8 if eps2 is None else min(1e-8, eps2 * rms(g))
            d = np.sqrt(state["f"]) + ehat
            gbar, gw = g / d, before / d
            clip, decay_clip = rms(gbar) / 0.8, rms(gw) / 0.8
            state["m"] = 0.9 * state["m"] + 0.1 * gbar / max(1, clip)
            gw = gw / max(1, decay_clip)
            x = x - 0.1 * (state["m"] + 0.3 * gw)
            (row,) = monitor.latest["parameters"].values()
            expected = {
                "entries": x.size,
                "weight_rms": rms(before),
                "grad_rms": rms(g),
                "update_rms": rms(x - before),
                "update_ratio": rms(x - before) / rms(before),
                "epsilon": ehat,
                "epsilon_share": np.mean(np.sqrt(state["f"]) <= ehat),
                "clip": clip,
                "decay_clip": decay_clip,
                "decay_share": 0.3 * rms(gw) / (0.3 * rms(gw) + rms(state["m"])),
            }
            assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
            assert row["fisher_quantiles"] == pytest.approx(np.quantile(state["f"], (0.01, 0.25, 0.5, 0.75, 0.99)))
            assert monitor.latest["total"]["clipped"] == float(clip > 1)
    np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-12)
    if scale == 1e-9:
        assert row["epsilon_share"] > 0.5
    if scale == 1.0:
        assert row["epsilon_share"] == 0.0


def rms(x):
    return math.sqrt(np.mean(np.square(x)))


def test_second_moments_are_the_unbiased_averages_of_squares():
    """Whatever an optimizer calls it and however it keeps it: mean of g^2 weighted by 0.999^age."""
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=(4, 6)) for _ in range(3)]
    weights = np.array([0.999**2, 0.999, 1.0])
    full = sum(w * g**2 for w, g in zip(weights, gradients, strict=True)) / weights.sum()
    factored = np.outer(full.sum(1), full.sum(0)) / full.sum()
    for name, build in OPTIMIZERS.items():
        p = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
        optimizer = build([p])
        assert second_moment(optimizer, p, optimizer.param_groups[0]) is None
        for g in gradients:
            p.grad = torch.tensor(g)
            optimizer.step()
        found = second_moment(optimizer, p, optimizer.param_groups[0])
        if name == "torch sgd":
            assert found is None
            continue
        expected = factored if "factor" in name else full
        tolerance = 0.02 if "bfloat16" in name else 1e-9
        np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance)


def test_names_and_the_end_of_it():
    p = nn.Parameter(torch.ones(3))
    optimizer = FAdam([("only", p)])
    monitor = Monitor(optimizer, every=1)
    p.grad = torch.ones(3)
    optimizer.step()
    assert list(monitor.latest["parameters"]) == ["only"]
    monitor.close()
    monitor.close()
    before = monitor.latest
    optimizer.step()
    assert monitor.latest is before
    resumed = Monitor(FAdam([p]), every=5, step=4)
    resumed._optimizer.step()
    assert (resumed.latest["step"], list(resumed.latest["parameters"])) == (5, ["0.0"])


def test_tensorboard_takes_the_same_numbers(tmp_path):
    class Writer:
        def __init__(self):
            self.scalars = {}

        def add_scalar(self, name, value, step):
            self.scalars[name, step] = value

    writer = Writer()
    _, _, monitor = run(FAdam, 2, {"tensorboard": writer})
    row = monitor.latest["parameters"]["0.weight"]
    assert writer.scalars["clip/0.weight", 2] == row["clip"]
    assert writer.scalars["fisher_50%/0.weight", 2] == row["fisher_quantiles"][2]
    assert writer.scalars["total/update_ratio", 2] == monitor.latest["total"]["update_ratio"]


def test_bad_input():
    optimizer = FAdam([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Monitor(optimizer, every=0)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        Monitor(optimizer, step=-1)
    assert fisheropt.Monitor is Monitor


def test_a_folder_for_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package itself, when it is imported
        _, _, monitor = run(FAdam, 2, {"tensorboard": tmp_path})
    monitor.close()
    assert [path for path in tmp_path.iterdir() if path.name.startswith("events.out") and path.stat().st_size > 500]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fisheropt\[monitor\]'"):
        run(FAdam, 1, {"tensorboard": tmp_path})
