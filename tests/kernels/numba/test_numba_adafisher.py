"""AdaFisher's kernel on the factors that layers give: the law of kernels, for every way a metric can lie.

What has no layer runs through the tables of tests/rules and test_numba_law.py like any other rule.
"""

import numpy as np
import pytest
import torch
from tests.cases import relative_error
from tests.oracle.adafisher import adafisher as oracle
from torch import nn

pytest.importorskip("numba")

from fisheropt import AdaFisherW
from fisheropt.adafisher import adafisher as eager
from fisheropt.kernels.numba.adafisher import adafisher, adafisher_many

STEPS = 3
TINY = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-10, torch.float16: 2.0**-13}

# p, and what multiplies to its metric, without the layers in front: (shape, rows, columns)
LINEAR = (300, 257), (300, 1), (1, 257)
EMBEDDING = (129, 40), (129, 1), (1, 40)
CONVOLUTION = (12, 5, 3, 3), (12, 1, 1, 1), (1, 5, 3, 3)
GROUPS = (12, 5, 3, 3), (12, 1, 1, 1), (12, 5, 3, 3)
DEPTHWISE = (64, 1, 3, 3), (64, 1, 1, 1), (64, 1, 3, 3)
BIAS = (300,), (300,), (1,)
ELEMENTWISE = (7, 3, 40), (7, 3, 40), (1, 1, 1)
NUMBER = (), (), ()
ONE_OUTPUT = (1, 70_000), (1, 1), (1, 70_000)
ONE_INPUT = (70_000, 1), (70_000, 1), (1, 1)
LONG_ROWS = (3, 40_000), (3, 1), (1, 40_000)
PLACES = {name: value for name, value in list(globals().items()) if name.isupper() and isinstance(value, tuple)}


def drawn(shape, seed, low=0.0):
    generator = torch.Generator().manual_seed(seed)
    if low:  # a factor: in [0, 1], most of it small
        return torch.rand(shape, generator=generator, dtype=torch.float64) ** 4
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def case(place, layers, dtype):
    """p, gradients of some steps, rows and columns."""
    shape, rows, columns = PLACES[place]
    p = drawn(shape, 0).to(dtype)
    g = [(1e-2 * drawn(shape, 1 + t)).to(dtype) for t in range(STEPS)]
    rows, columns = (drawn((layers, *s), 9 + i, low=1.0).float() for i, s in enumerate((rows, columns)))
    return p, g, rows, columns


def run(rule, p, g, rows, columns, momentum, **options):
    p, m = p.clone(), torch.zeros(p.shape) if momentum else None
    wide = p.dtype if rule is adafisher else torch.float32
    for t, row in enumerate(g):
        q = p.to(wide)
        rule(q, row.to(wide), torch.tensor(t + 1), m, rows, columns, **options)
        p.copy_(q)
    return p, m


def exactly(p, g, rows, columns, damping, decoupled, **options):
    """The oracle, with p rounded to its dtype after every step."""
    F = (rows.double() * columns.double()).sum(0).expand(p.shape).numpy() + damping
    state = None
    for row in g:
        value, state = oracle(p.double().numpy(), row.double().numpy(), state, F=F, decoupled=decoupled, **options)
        p = torch.as_tensor(value).to(p.dtype)
    return p.double().numpy(), state["m"]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_kernel_is_as_exact_as_the_plain_rule_wherever_the_factors_lie(place, layers):
    for dtype in TINY if place in ("LINEAR", "GROUPS") else (torch.float32,):
        numbers = case(place, layers, dtype)
        for decoupled, kappa, beta in ((True, 0.1, 0.9), (False, 0.1, 0.9), (False, 0.0, 0.0)):
            options = {"lr": 1e-3, "beta": beta, "damping": 1e-2, "weight_decay": kappa, "decoupled": decoupled}
            expected = exactly(*numbers, **options)
            plain = run(eager, *numbers, momentum=beta > 0, **options)
            kernel = run(adafisher, *numbers, momentum=beta > 0, **options)
            for what, ours, theirs, right in zip("pm", kernel, plain, expected, strict=True):
                if ours is not None:
                    bound = 2 * relative_error(theirs, right) + TINY[dtype if what == "p" else torch.float32]
                    assert relative_error(ours, right) <= bound, (what, dtype, options)


def test_many_tensors_of_every_kind_and_dtype_at_once_are_what_each_is_alone():
    """One call for a model, whose threads take pieces of any tensor."""
    options = {"lr": 1e-3, "beta": 0.9, "damping": 1e-2, "weight_decay": 0.1, "decoupled": True}
    cases = [
        case(place, layers, dtype)
        for place in PLACES
        for layers, dtype in ((1, torch.float32), (2, torch.float32), (1, torch.bfloat16))
    ]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            ps, ms = [c[0].clone() for c in cases], [torch.zeros(c[0].shape) for c in cases]
            for t in range(STEPS):
                gs, steps = [c[1][t] for c in cases], [torch.tensor(t + 1) for _ in cases]
                adafisher_many(ps, gs, steps, ms, *([c[i] for c in cases] for i in (2, 3)), **options)
            for p, m, numbers in zip(ps, ms, cases, strict=True):
                alone = run(adafisher, *numbers, momentum=True, **options)
                assert torch.equal(p, alone[0])
                assert torch.equal(m, alone[1])
    finally:
        torch.set_num_threads(before)


class Tied(nn.Module):
    """Every kind of layer, and a table that is the head too."""

    def __init__(self):
        super().__init__()
        self.table, self.body, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.grouped, self.plain = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.Conv1d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.norm(self.body(self.table(tokens)).tanh()).transpose(1, 2)
        return self.head(self.plain(self.grouped(x)).transpose(1, 2))


def trained(backend, dtype):
    torch.manual_seed(0)
    net = Tied().to(dtype)
    optimizer = AdaFisherW(net, lr=1e-4, weight_decay=0.1, update_every=2, backend=backend)
    assert set(optimizer.backends().values()) == {backend}
    for seed in range(4):
        optimizer.zero_grad()
        net(torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
    return dict(net.named_parameters())


def test_a_model_trains_as_with_the_plain_rule():
    kernel, plain = trained("numba", torch.float32), trained("eager", torch.float32)
    for name, p in kernel.items():
        assert relative_error(p, plain[name].detach().double().numpy()) <= 5e-6, name


def test_bfloat16_weights_have_a_float32_metric():
    """The kernel takes them as they are; a metric rounded to eight bits would be off by a part in 256."""
    kernel, plain = trained("numba", torch.bfloat16), trained("eager", torch.bfloat16)
    differ = np.mean([float((p != plain[name]).double().mean()) for name, p in kernel.items()])
    assert differ <= 0.02


def test_what_it_does_not_take_runs_eagerly_and_says_why():
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = AdaFisherW(net, backend="numba")
    assert optimizer.backends() == {"weight": "eager (numba: it takes contiguous tensors)", "bias": "numba"}
    net(torch.randn(2, 3, 5, 5)).square().mean().backward()
    start = net.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(net.weight, start)
