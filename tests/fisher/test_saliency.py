"""Saliency against the KL divergence it predicts, and pruning by it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fisheropt.fisher import fisher_saliency, prune_by_saliency

DOUBLE = {"dtype": torch.float64}


def test_it_is_the_kl_divergence_of_a_shrunken_weight_to_second_order():
    """A softmax over the weights: shrinking weight i by a factor 1 - e costs e^2 theta_i^2 F_ii/2 nats."""
    model = nn.Linear(1, 5, bias=False, **DOUBLE)
    x = torch.ones(1, 1, **DOUBLE)
    p = torch.softmax(model(x), -1)[0].detach()
    saliency = fisher_saliency(model, {"weight": (p * (1 - p)).reshape(5, 1)})["weight"]
    e = 1e-4
    for i in range(5):
        d = torch.zeros_like(model.weight)
        d[i] = -e * model.weight[i].detach()
        q = torch.softmax(x @ (model.weight + d).T, -1)[0].detach()
        kl = (p * (p / q).log()).sum()
        torch.testing.assert_close(kl / e**2, saliency[i, 0], rtol=2e-3, atol=0)


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


@pytest.mark.parametrize(("amount", "pruned"), [(0.0, 0), (0.3, 15), (7, 7), (1.0, 50)])
def test_the_least_salient_weights_of_all_layers_go(amount, pruned):
    model = net()
    fisher = {name: torch.rand_like(p) * 10 ** torch.randn(()) for name, p in model.named_parameters()}
    saliency = fisher_saliency(model, fisher)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prune_by_saliency(model, saliency, amount)
    scores = torch.cat([saliency[name].flatten() for name in ("0.weight", "2.weight")])
    gone = torch.cat([(module.weight == 0).flatten() for module in (model[0], model[2])])
    assert gone.sum() == pruned
    if 0 < pruned < 50:
        assert scores[gone].max() < scores[~gone].min()
    for module, name in ((model[0], "0"), (model[2], "2")):
        assert torch.equal(module.bias, before[f"{name}.bias"])
        kept = module.weight != 0
        assert torch.equal(module.weight[kept], before[f"{name}.weight"][kept])


def test_pruned_weights_stay_pruned_in_training_and_names_come_back():
    model = net()
    prune_by_saliency(model, {name: p.detach().abs() for name, p in model.named_parameters()}, 0.5)
    gone = model[0].weight == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    model(torch.randn(8, 6))
    assert (model[0].weight[gone] == 0).all()
    prune.remove(model[0], "weight")
    assert "weight" in dict(model[0].named_parameters())


def test_a_name_may_be_chosen():
    model = net()
    saliency = {name: p.detach().abs() for name, p in model.named_parameters()}
    prune_by_saliency(model, saliency, 0.5, names=["2.bias", "0.bias"])
    assert (model[0].bias == 0).sum() + (model[2].bias == 0).sum() == 4
    assert (model[0].weight != 0).all()


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: fisher_saliency(m, {"x": torch.ones(1)}), "fisher has 'x', which is no parameter"),
        (lambda m: fisher_saliency(m, {"0.bias": torch.ones(1)}), r"shape \(1,\), the parameter \(5,\)"),
        (lambda m: prune_by_saliency(m, {}, 0.5), "there is nothing to prune"),
        (lambda m: prune_by_saliency(m, {"0.bias": torch.ones(5)}, 0.5), "there is nothing to prune"),
        (lambda m: prune_by_saliency(m, {}, 0.5, ["0.weight"]), "names has '0.weight', for which there is no saliency"),
        (lambda m: prune_by_saliency(m, {"x": torch.ones(1)}, 0.5, ["x"]), "no parameter of the model"),
        (
            lambda m: prune_by_saliency(m, {"0.weight": torch.ones(2, 2)}, 0.5),
            r"shape \(2, 2\), the parameter \(5, 6\)",
        ),
        (
            lambda m: prune_by_saliency(tied(), {"0.weight": torch.ones(3, 3)}, 0.5),
            "0.weight and 1.weight are one tied",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(net())
