"""SPEC D17 to D19 on a whole net, against dense Jacobians in float64.

With one example at one position the Kronecker product is the squared Jacobian itself, for every kind of layer and
every way to call it; nothing here goes through the hooks twice.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fisheropt import AdaFisher
from fisheropt.fisher import layer_of

DOUBLE = {"dtype": torch.float64}
NEW = 0.2  # 1 - gamma: the weight of the first factors in their average, which starts at 0


class Everything(nn.Module):
    """Every kind of layer, one after the other, on one token; a parameter of its own, and one layer that is not called.

    Shapes: () -> (1, 4) -> (1, 4, 2) -> ... -> (1, 6), the convolutions ending at one position.
    """

    def __init__(self, way="plain"):
        super().__init__()
        self.way = way
        self.table, self.body = nn.Embedding(5, 4, **DOUBLE), nn.Linear(4, 8, **DOUBLE)
        self.conv1d = nn.Conv1d(4, 6, 2, groups=2, **DOUBLE)
        self.conv2d = nn.Conv2d(6, 4, (1, 3), padding=(0, 1), padding_mode="replicate", bias=False, **DOUBLE)
        self.conv3d = nn.Conv3d(4, 4, 1, stride=2, groups=4, **DOUBLE)
        self.layer_norm, self.rms_norm = nn.LayerNorm(4, **DOUBLE), nn.RMSNorm(4, **DOUBLE)
        self.group_norm, self.prelu = nn.GroupNorm(2, 4, **DOUBLE), nn.PReLU(4, **DOUBLE)
        self.bare, self.idle = nn.Parameter(torch.randn(1, 4, **DOUBLE)), nn.Linear(3, 3, **DOUBLE)
        self.relu, self.head = nn.ReLU(inplace=way == "in place"), nn.Linear(4, 6, **DOUBLE)

    def trunk(self, token):
        x = self.body(input=self.table(input=token)) if self.way == "keywords" else self.body(self.table(token))
        x = self.relu(x) + 0.1
        return self.conv1d(x.reshape(1, 4, 2))  # (1, 6, 1)

    def forward(self, token):
        x = checkpoint(self.trunk, token, use_reentrant=False) if self.way == "checkpoint" else self.trunk(token)
        x = self.conv3d(self.conv2d(x.unsqueeze(2)).unsqueeze(4)).reshape(1, 4)
        x = self.prelu(self.rms_norm(self.group_norm(x)) * self.bare)
        x = self.layer_norm(x)
        y = self.head(input=x) if self.way == "keywords" else self.head(x)
        return self.relu(y) if self.way == "in place" else y


def made(way):
    torch.manual_seed(0)
    net = Everything(way)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return net


def loss_of(net, token):
    return net(token).pow(3).sum()


def squared_jacobian(net, token):
    """Of the loss with respect to every parameter that has a gradient, from a copy of the net without hooks."""
    net = copy.deepcopy(net)
    names = [name for name, p in net.named_parameters() if p.requires_grad]

    def loss(*given):
        return torch.func.functional_call(net, dict(zip(names, given, strict=True)), (token,)).pow(3).sum()

    given = [net.get_parameter(name).detach() for name in names]
    jacobians = torch.func.jacrev(loss, argnums=tuple(range(len(names))))(*given)
    return dict(zip(names, (j.square() for j in jacobians), strict=True))


def metric(optimizer, net, name):
    """F of a parameter before minmax and damping, from what the optimizer keeps."""
    factors = optimizer.state["fisher"]["factors"]
    path, _, role = name.rpartition(".")
    if f"{path}.weight" in factors and "H" in (known := factors[f"{path}.weight"]):
        rows, columns = layer_of(net.get_submodule(path)).placed(role, known["S"] / NEW, known["H"] / NEW)
        return rows * columns
    return factors[name]["f"] / NEW


WAYS = ("plain", "keywords", "in place", "checkpoint", "compile", "frozen")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, of its graphs
@pytest.mark.parametrize("way", WAYS)
def test_of_one_example_the_metric_of_every_parameter_is_its_squared_jacobian(way, request):
    net, token = made(way), torch.tensor([2])
    if way == "frozen":
        for p in (net.table.weight, net.body.bias, net.conv2d.weight, net.layer_norm.weight, net.bare):
            p.requires_grad_(False)
    reference = squared_jacobian(made("in place" if way == "in place" else "plain"), token)  # it ends with a ReLU more
    optimizer = AdaFisher(net, lr=0.0)
    run = net
    if way == "compile":
        request.getfixturevalue("compiler")
        run = torch.compile(net, backend="aot_eager")
    loss_of(run, token).backward()
    optimizer.step()
    seen = {name for name, p in net.named_parameters() if p.grad is not None}
    kinds = {name: summary.kind for name, summary in optimizer.curvature_summary().items()}
    assert kinds.keys() == seen
    assert seen == {name for name, p in net.named_parameters() if p.requires_grad and "idle" not in name}
    for name in seen:
        layer = name.rpartition(".")[0] in ("table", "body", "conv1d", "conv2d", "conv3d", "head")
        assert kinds[name] == ("kronecker" if layer else "elementwise")
        found = metric(optimizer, net, name)
        expected = reference[name]
        torch.testing.assert_close(found.expand(expected.shape), expected, rtol=1e-10, atol=1e-14, msg=name)


def test_of_one_example_a_tied_weight_has_the_squared_jacobian_of_each_use():
    """Their sum, without the products of two uses: what would come of a copy of the weight per use (D18)."""
    torch.manual_seed(0)
    table, body, head = nn.Embedding(5, 4, **DOUBLE), nn.Linear(4, 4, **DOUBLE), nn.Linear(4, 5, **DOUBLE)
    untied = copy.deepcopy(nn.Sequential(table, body, nn.Tanh(), head))
    head.weight = table.weight
    untied[3].weight.data.copy_(table.weight)
    net, token = nn.Sequential(table, body, nn.Tanh(), head), torch.tensor([3])
    optimizer = AdaFisher(net, lr=0.0)
    loss_of(net, token).backward()
    optimizer.step()
    of_each = squared_jacobian(untied, token)
    factors = optimizer.state["fisher"]["factors"]
    uses = {"0.weight": table, "3.weight": head}
    found = []
    for name, layer in uses.items():
        rows, columns = layer_of(layer).placed("weight", factors[name]["S"] / NEW, factors[name]["H"] / NEW)
        found.append(rows * columns)
        torch.testing.assert_close(found[-1], of_each[name], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(sum(found), of_each["0.weight"] + of_each["3.weight"], rtol=1e-10, atol=1e-14)
