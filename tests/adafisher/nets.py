"""Small nets, what an onlooker sees of them while they train, and where the oracle takes them from that."""

import numpy as np
import torch
from tests.oracle import adafisher as oracle
from torch import nn


class Bare(nn.Module):
    """A module of another kind, with a parameter of no dimensions and one of two."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        return x * self.scale + self.shift


class Tied(nn.Module):
    """A language model whose output layer is its embedding: one parameter, two layers, two orientations."""

    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.body(self.table(x)).tanh())


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), Bare(), nn.Linear(4, 2, bias=False))


def convnet():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular"),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.Conv2d(4, 3, 2, stride=2, dilation=2, bias=False),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(3 * 2 * 2, 2),
    )


def tied():
    return Tied()


def images(steps, batch, dtype):
    return list(torch.randn(steps, batch, 2, 5, 5, dtype=torch.float64, generator=_seeded()).to(dtype))


def vectors(steps, batch, dtype):
    return list(torch.randn(steps, batch, 3, dtype=torch.float64, generator=_seeded()).to(dtype))


def tokens(steps, batch, dtype):
    return list(torch.randint(0, 6, (steps, batch, 3), generator=_seeded()))


def _seeded():
    return torch.Generator().manual_seed(11)


NETS = {"mlp": (mlp, vectors), "convnet": (convnet, images), "tied": (tied, tokens)}


def make(kind, dtype=torch.float64, seed=0):
    """A net with reproducible weights, of the order of one, biases and norms included."""
    torch.manual_seed(seed)
    net = NETS[kind][0]().to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, dtype=torch.float64).to(dtype), alpha=0.3)
    return net


def data(kind, steps=3, batch=4, dtype=torch.float64):
    return NETS[kind][1](steps, batch, dtype)


def loss_of(net, x):
    """A mean over the units of a batch."""
    return net(x).square().mean()


def train(net, optimizer, batches):
    for x in batches:
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()


class Onlooker:
    """Sees the inputs and output gradients of layers in its own way: from tensors that retain their gradients."""

    def __init__(self, net):
        self.net, self.seen = net, []
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name):
        def note(module, args, output):
            output.retain_grad()
            self.seen.append((name, module, args[0].detach().clone(), output))

        return note

    def take(self):
        """Layer -> (h, s) in float64, a unit per row, of everything since the last time; and the gradients by name."""
        layers = {name: (rows_of_input(m, x), rows_of_gradient(m, y.grad)) for name, m, x, y in self.seen}
        self.seen.clear()
        return layers, {name: p.grad.double().numpy().copy() for name, p in self.net.named_parameters()}


def rows_of_input(module, x):
    if isinstance(module, nn.Embedding):
        return oracle.one_hot(x.numpy(), module.num_embeddings)
    x = x.double().numpy()
    if isinstance(module, nn.Conv2d):
        pad = [(n, n) for n in module.padding]
        mode = {"zeros": "constant", "circular": "wrap"}[module.padding_mode]
        h = oracle.patches(x, module.kernel_size, module.stride, module.dilation, pad, mode)
    else:
        h = x.reshape(-1, x.shape[-1])
    return h if module.bias is None else oracle.with_one(h)


def rows_of_gradient(module, s):
    s = s.double().numpy()
    return (
        np.moveaxis(s, 1, -1).reshape(-1, s.shape[1]) if isinstance(module, nn.Conv2d) else s.reshape(-1, s.shape[-1])
    )


class OracleRun:
    """A net's parameters, trained by the oracle on what an onlooker saw."""

    def __init__(self, net, *, damping=1e-3, gammas=(0.8, 0.8), normalize="after", update_every=1, **options):
        self.net, self.options, self.damping, self.update_every = net, options, damping, update_every
        self.average = {"gammas": gammas, "normalize": normalize}
        self.form = {"damping": damping, "normalize": normalize}
        self.p = {name: p.detach().double().numpy().copy() for name, p in net.named_parameters()}
        self.state = dict.fromkeys(self.p)
        self.factors, self.f, self.steps = {}, {}, 0

    def step(self, layers, grads):
        if self.steps % self.update_every == 0:
            for name, (h, s) in layers.items():
                self.factors[name] = oracle.factors(h, s, self.factors.get(name), **self.average)
            for name, g in grads.items():
                self.f[name] = oracle.average(self.f.get(name), g**2, **self.average)
        self.steps += 1
        for name, g in grads.items():
            self.p[name], self.state[name] = oracle.adafisher(
                self.p[name], g, self.state[name], F=self.metric(name), **self.options
            )

    def metric(self, name):
        """The metric of a parameter: what its layers say, or its own gradients."""
        p = dict(self.net.named_parameters())[name]
        uses = [
            self._of_layer(path, module, role)
            for path, module in self.net.named_modules()
            for role in ("weight", "bias")
            if path in self.factors and getattr(module, role, None) is p
        ]
        if not uses:
            return oracle.elementwise(self.f[name], **self.form)
        return sum(uses) - (len(uses) - 1) * self.damping

    def _of_layer(self, path, module, role):
        F = oracle.kronecker(*self.factors[path], **self.form)
        if role == "bias":
            return F[:, -1]
        if isinstance(module, nn.Embedding):
            return F.T
        if isinstance(module, nn.Conv2d):
            per_group = module.weight[0].numel()
            group = np.arange(module.out_channels) // (module.out_channels // module.groups)
            rows = [F[o, g * per_group : (g + 1) * per_group] for o, g in enumerate(group)]
            return np.stack(rows).reshape(module.weight.shape)
        return F[:, : module.in_features]


def relative_error(actual, expected):
    """Largest error over largest reference."""
    actual = torch.as_tensor(actual).detach().double().numpy()
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / max(np.abs(expected).max(), np.finfo(float).tiny)


def numbers(optimizer):
    """Every number an optimizer has, by name, as copies: parameters, momenta, steps, factors and counters."""
    found = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            found[name] = p.detach().clone()
            found |= {f"{slot} of {name}": value.clone() for slot, value in optimizer.state.get(p, {}).items()}
    record = optimizer.state.get("fisher", {"steps": 0, "factors": {}})
    found["steps"] = torch.tensor(record["steps"])
    for name, known in record["factors"].items():
        found |= {f"{letter} of {name}": torch.as_tensor(value).clone() for letter, value in known.items()}
    return found


def same_bits(left, right):
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


def apart(left, right):
    """The largest relative difference of two optimizers' `numbers`, over tensors."""
    assert left.keys() == right.keys()
    return max(relative_error(left[k], right[k].double().numpy()) for k in left)
