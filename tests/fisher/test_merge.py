"""Merging against the mode of a product of Gaussians."""

import math

import pytest
import torch
from torch import nn

from fisheropt.fisher import fisher_merge

DOUBLE = {"dtype": torch.float64}


def net():
    return nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Linear(4, 2, **DOUBLE))


def some_fisher(model):
    return {name: torch.rand_like(p) for name, p in model.named_parameters()}


def three():
    models = [net() for _ in range(3)]
    return models, [some_fisher(model) for model in models]


def test_the_merged_model_is_the_mode_of_the_product_of_posteriors():
    """There the gradient of sum lambda_i F_i (theta - theta_i)^2/2 is zero, by autograd."""
    models, fishers = three()
    merged = fisher_merge(models, fishers, [0.2, 0.5, 1.3])
    for name in merged:
        theta = merged[name].clone().requires_grad_()
        energy = sum(
            c * (F[name] * (theta - m.state_dict()[name]) ** 2).sum() / 2
            for c, F, m in zip([0.2, 0.5, 1.3], fishers, models, strict=True)
        )
        (gradient,) = torch.autograd.grad(energy, theta)
        assert gradient.abs().max() < 1e-13
        assert theta.dtype == torch.float64


def test_equal_fishers_give_the_plain_average_whatever_their_scale():
    models, _ = three()
    for scale in (1e-45, 1.0, 1e38):
        fishers = [{n: torch.full_like(p, scale, dtype=torch.float32) for n, p in models[0].named_parameters()}] * 3
        merged = fisher_merge(models, fishers)
        for name, p in merged.items():
            torch.testing.assert_close(p, sum(m.state_dict()[name] for m in models) / 3, rtol=1e-12, atol=1e-14)


def test_entries_nobody_knows_anything_of_are_averaged_by_the_coefficients():
    a, b = ({"w": torch.tensor(x, **DOUBLE)} for x in ([1.0, 2.0, 3.0], [5.0, 6.0, 7.0]))
    fishers = [{"w": torch.tensor([0.0, 1.0, 0.0])}, {"w": torch.tensor([0.0, 0.0, 2.0])}]
    merged = fisher_merge([a, b], fishers, [3, 1])
    assert merged["w"].tolist() == [2.0, 2.0, 7.0]


def test_a_model_of_coefficient_zero_has_no_say():
    models, fishers = three()
    merged = fisher_merge(models, fishers, [0, 1, 0])
    for name, p in merged.items():
        torch.testing.assert_close(p, models[1].state_dict()[name], rtol=1e-14, atol=0)


def test_models_and_state_dicts_are_the_same_and_nothing_is_shared():
    models, fishers = three()
    before = [{name: p.clone() for name, p in m.state_dict().items()} for m in models]
    merged = fisher_merge(models, fishers)
    again = fisher_merge([m.state_dict() for m in models], fishers)
    torch.testing.assert_close(merged, again, rtol=0, atol=0)
    net().load_state_dict(merged)
    for p in merged.values():
        p.zero_()
    torch.testing.assert_close([dict(m.state_dict()) for m in models], before, rtol=0, atol=0)


def test_tied_weights_stay_equal_by_one_name_of_the_fisher():
    def tied():
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    models = [tied(), tied()]
    fishers = [some_fisher(m) for m in models]
    assert list(fishers[0]) == ["0.weight"]
    merged = fisher_merge(models, fishers)
    assert torch.equal(merged["0.weight"], merged["1.weight"])
    plain = (models[0][0].weight + models[1][0].weight) / 2
    assert not torch.allclose(merged["1.weight"], plain)


def with_statistics(mean, count):
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(mean)
    model.num_batches_tracked.fill_(count)
    return model


def test_buffers_that_differ_are_somebodys_decision():
    models = [with_statistics(1.0, 5), with_statistics(4.0, 5)]
    fishers = [some_fisher(m) for m in models]
    with pytest.raises(ValueError, match="the models differ in 'running_mean', which has no Fisher information"):
        fisher_merge(models, fishers)
    averaged = fisher_merge(models, fishers, [1, 2], rest="average")
    assert averaged["running_mean"].tolist() == [3.0, 3.0]
    assert averaged["num_batches_tracked"] == 5
    assert fisher_merge(models, fishers, rest="first")["running_mean"].tolist() == [1.0, 1.0]
    models[1].num_batches_tracked.fill_(6)
    with pytest.raises(ValueError, match=r"'num_batches_tracked' of dtype torch.int64, which has no average"):
        fisher_merge(models, fishers, rest="average")
    assert fisher_merge(models, fishers, rest="first")["num_batches_tracked"] == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, f: fisher_merge(m[:1], f[:1]), "two or more models and as many fishers, got 1 and 1"),
        (lambda m, f: fisher_merge(m, f[:2]), "as many fishers, got 3 and 2"),
        (lambda m, f: fisher_merge(m, f, [1, 2]), "coefficients must be one per model, got 2 for 3"),
        (lambda m, f: fisher_merge(m, f, [1, -2, 3]), "must be finite, >= 0 and not all 0"),
        (lambda m, f: fisher_merge(m, f, [0, 0, 0]), "must be finite, >= 0 and not all 0"),
        (lambda m, f: fisher_merge(m, f, rest="mean"), "rest must be 'raise', 'average' or 'first', got 'mean'"),
        (lambda m, f: fisher_merge([*m[:2], nn.Linear(3, 4)], f), "model 2 has other names or shapes than model 0"),
        (lambda m, f: fisher_merge(m, [*f[:2], {}]), "fisher 2 has other names than fisher 0: 0.bias"),
        (lambda m, f: fisher_merge(m, [{**g, "x": torch.ones(1)} for g in f]), "fisher 0 has 'x', which no model has"),
        (lambda m, f: fisher_merge(m, [{**g, "1.bias": torch.ones(1)} for g in f]), r"shape \(1,\) for '1.bias'"),
        (
            lambda m, f: fisher_merge(m, [{**g, "1.bias": torch.tensor([1, math.inf])} for g in f]),
            "must be finite and >= 0, and is not in '1.bias'",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(*three())
