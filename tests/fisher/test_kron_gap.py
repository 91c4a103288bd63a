"""AdaFisher's approximation against dense gradients per example in float64."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fisheropt.fisher import kron_diag_gap

DOUBLE = {"dtype": torch.float64}


class Tokens(nn.Module):
    """Two positions of an embedding through a layer, and a classifier over the first two tokens together."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.inner = nn.Linear(4, 5)
        self.outer = nn.Linear(10, 3, bias=False)

    def forward(self, tokens):
        return self.outer(self.inner(self.embedding(tokens)).tanh().flatten(1))


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("kind", ["tokens", "conv"])
def test_against_dense_gradients(kind):
    if kind == "tokens":
        model, x = Tokens().double(), torch.randint(6, (20, 2))
    else:
        model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
        x = torch.randn(20, 2, 3, 3, **DOUBLE)
    y = torch.randint(3, (20,))
    found = kron_diag_gap(model, [(x[:13], y[:13]), (x[13:], y[13:])])
    params = dict(model.named_parameters())

    def loss(p, x, y):
        return cross_entropy(torch.func.functional_call(model, p, (x[None],)), y[None])

    diagonals = {
        name: torch.stack(each).square().mean(0).numpy()
        for name, each in zip(
            params,
            zip(
                *(torch.autograd.grad(loss(params, *one), list(params.values())) for one in zip(x, y, strict=True)),
                strict=True,
            ),
            strict=True,
        )
    }
    inputs, slopes = factors(model, x, y)
    assert set(found.layers) == {name for name in params if name.endswith("weight")}
    for name, layer in found.layers.items():
        D = diagonals[name]
        K = np.mean(slopes[name] ** 2, axis=0)[:, None] * np.mean(inputs[name] ** 2, axis=0)[None]
        K *= len(inputs[name]) / 20
        if name == "embedding.weight":
            K = K.T
        if kind == "conv" and name == "0.weight":  # each group of outputs has channels of its own
            K = np.stack([row.reshape(2, 1, 2, 2)[group] for group, row in zip((0, 0, 1, 1), K, strict=True)])
        assert layer.agreement.cosine == pytest.approx(cosine(K, D), rel=1e-9)
        assert layer.agreement.trace_ratio == pytest.approx(K.sum() / D.sum(), rel=1e-9)
        assert layer.agreement.cosine <= layer.best_cosine <= 1 + 1e-12
        if D.ndim == 2:
            assert layer.best_cosine == pytest.approx(np.linalg.norm(D, 2) / np.linalg.norm(D), rel=1e-9)
    assert len(str(found).splitlines()) == 1 + len(found.layers)


def factors(model, x, y):
    """h and s of every layer, (units and positions, features), from autograd on its outputs."""
    inputs, outputs = {}, {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):

            def keep(module, args, output, name=f"{name}.weight"):
                output.retain_grad()
                inputs[name], outputs[name] = args[0], output

            hooks.append(module.register_forward_hook(keep))
    cross_entropy(model(x), y, reduction="sum").backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    h, s = {}, {}
    for name in inputs:
        a, b = inputs[name].detach(), outputs[name].grad
        if name == "embedding.weight":
            a = nn.functional.one_hot(a, 6).double()
        if a.dim() == 4:
            a, b = nn.functional.unfold(a, 2).transpose(1, 2), b.flatten(2).transpose(1, 2)
        h[name], s[name] = a.reshape(-1, a.shape[-1]).numpy(), b.reshape(-1, b.shape[-1]).numpy()
    return h, s


def test_one_position_and_inputs_of_one_size_leave_no_gap():
    model = nn.Sequential(nn.Linear(6, 3)).double()
    x = torch.randint(0, 2, (30, 6)).double() * 2 - 1
    (layer,) = kron_diag_gap(model, [(x, torch.randint(3, (30,)))]).layers.values()
    assert layer.agreement.cosine == pytest.approx(1.0)
    assert layer.agreement.trace_ratio == pytest.approx(1.0)
    assert layer.best_cosine == pytest.approx(1.0)


def test_masked_labels_and_masked_examples_do_not_count():
    model = Tokens().double()
    x, y = torch.randint(6, (9, 2)), torch.randint(3, (9,))
    masked = torch.cat([y, torch.full((3,), -100)])
    some = kron_diag_gap(model, [(x, y)])
    more = kron_diag_gap(model, [(torch.cat([x, x[:3]]), masked)])
    assert more.units == some.units == 9
    for name, layer in some.layers.items():
        assert more.layers[name].best_cosine == pytest.approx(layer.best_cosine)  # of the diagonal


def test_a_model_without_such_layers():
    model = nn.Sequential(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="the model has none of its own"):
        kron_diag_gap(model, [(torch.randn(2, 3), torch.randint(3, (2,)))])
