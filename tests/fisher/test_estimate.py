"""Estimates of the diagonal: against dense Jacobians in float64, blind to what must not matter, leaving no trace."""

import copy

import pytest
import torch
from tests.fisher import dense
from tests.fisher.zoo import CLASSES, ZOO, N, T, animal, classes, vectors
from torch import nn
from torch.nn import functional

from fisheropt.fisher import fisher_diag, per_unit, unit_squares

TIGHT = {"rtol": 1e-10, "atol": 1e-14}


def agree(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **TIGHT, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_model_agrees_with_its_dense_jacobians(name, estimator):
    model, x, y = animal(name)
    found = fisher_diag(model, [(x[:3], y[:3]), (x[3:], y[3:])], estimator=estimator)
    agree(found, dense.diagonal(model, x, y, estimator=estimator))
    assert found.units == N
    assert found.dtype == torch.float64


@pytest.mark.parametrize("few", [0, 16])
@pytest.mark.parametrize("budget", [1, 300])
@pytest.mark.parametrize("name", ["attention", "tied as a layer", "vectors at positions", "conv"])
def test_however_many_units_are_taken_at_a_time(monkeypatch, name, budget, few):
    """Gradients of one unit or of a few, whose squares are added one by one or summed together."""
    monkeypatch.setitem(per_unit._BUDGET, "cpu", budget)
    monkeypatch.setattr(unit_squares, "_FEW", few)
    model, x, y = animal(name)
    found = fisher_diag(model, [(x, y)], estimator="empirical")
    agree(found, dense.diagonal(model, x, y, estimator="empirical"))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_only_what_no_layer_explains_runs_the_model_again(name):
    """Otherwise the cost of an estimate would not be that of two backward passes."""
    model, x, y = animal(name)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    fisher_diag(model, [(x, y)], estimator="empirical")
    again = {"weight norm", "nn.MultiheadAttention", "positions", "time first", "tied by a function", "called twice"}
    assert (len(calls) > 1) == (name in again)


@pytest.mark.parametrize("name", ["time first", "positions", "attention", "tied as a layer", "nn.MultiheadAttention"])
def test_as_many_examples_as_positions_are_not_taken_for_each_other(name):
    model, x, y = animal(name)
    x, y = x[:T], y[:T]
    found = fisher_diag(model, [(x, y)], estimator="empirical")
    agree(found, dense.diagonal(model, x, y, estimator="empirical"))


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("name", ["attention", "tied as a layer", "vectors at positions", "mlp"])
def test_per_token_is_the_square_of_the_gradient_of_one_label(name, estimator):
    model, x, y = animal(name)
    y = y.clone()
    y.view(-1)[::3] = -100
    found = fisher_diag(model, [(x[:3], y[:3]), (x[3:], y[3:])], estimator=estimator, unit="token")
    if y.dim() == 1:  # a label per example: the two are one
        y, x = y[y != -100], x[y != -100]
        agree(found, fisher_diag(model, [(x, y)], estimator=estimator))
        return
    agree(found, dense.diagonal(model, x, y, estimator=estimator, unit="token"))
    assert found.units == int((y != -100).sum())
    assert found.masked_units == int((y == -100).sum())


@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", ["mlp", "vectors at positions"])
def test_other_likelihoods(name, likelihood, estimator):
    model, x, y = animal(name)
    y = functional.one_hot(y, CLASSES).double()
    found = fisher_diag(model, [(x, y)], likelihood=likelihood, estimator=estimator)
    agree(found, dense.diagonal(model, x, y, likelihood=likelihood, estimator=estimator))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_one_number_per_example(likelihood):
    """Outputs of shape (N,) are those of shape (N, 1)."""
    column, y = nn.Sequential(nn.Linear(4, 1)).double(), (vectors()[:, None] > 0).double()
    flat = nn.Sequential(column[0], nn.Flatten(0))
    for estimator in ("exact", "empirical"):
        how = {"likelihood": likelihood, "estimator": estimator}
        a = fisher_diag(column, [(vectors(4), y)], **how)
        agree(fisher_diag(flat, [(vectors(4), y[:, 0])], **how), dict(a))


def test_a_function_gives_the_negative_log_likelihood():
    model, x, y = animal("vectors at positions")

    def nll(z, y):
        return functional.cross_entropy(z.movedim(-1, 1), y, reduction="none")

    found = fisher_diag(model, [(x, y)], likelihood=nll, estimator="empirical")
    agree(found, dict(fisher_diag(model, [(x, y)], estimator="empirical")))
    assert found.likelihood == "nll"
    with pytest.raises(ValueError, match="estimator='mc' must know the distribution"):
        fisher_diag(model, [(x, y)], likelihood=nll, estimator="mc")
    with pytest.raises(ValueError, match=r"one number per label.*reduction='none'"):
        fisher_diag(model, [(x, y)], likelihood=lambda z, y: nll(z, y).mean(), estimator="empirical")


@pytest.mark.parametrize("estimator", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("unit", ["example", "token"])
@pytest.mark.parametrize("name", ["attention", "vectors at positions"])
def test_neither_batches_nor_padding_matter(name, unit, estimator):
    """All at once, one by one, with a last batch that is not full, and padded to twice the length."""
    model, x, y = animal(name)
    y = y.clone()
    y[0, -1] = y[3] = -100  # one label of an example, and all of another
    how = {"unit": unit, "estimator": estimator}
    if estimator == "mc":  # the labels that are drawn must not change: there is only one that is possible
        (model.head if name == "attention" else model.last).bias.data[1] += 1e3
    expected = dict(fisher_diag(model, [(x, y)], **how))
    for sizes in ([1] * N, [2, 2, 1], [4, 1]):
        agree(fisher_diag(model, zip(x.split(sizes), y.split(sizes), strict=True), **how), expected)
    padding = functional.pad(y, (0, T), value=-100)
    longer = torch.cat([x, x.flip(1)], dim=1)
    found = fisher_diag(model, [(longer, padding)], **how)
    agree(found, expected)
    assert found.masked_units == (1 if unit == "example" else int((padding == -100).sum()))
    by_mask = fisher_diag(model, [(longer, padding.clamp(min=0))], mask=lambda x, y: padding != -100, **how)
    assert by_mask == found


def test_monte_carlo_is_within_three_standard_errors_of_the_exact_one():
    """Of the oracle's: the variance of each squared score under the model, for a fixed number of draws."""
    model, x, y = animal("mlp")
    samples = 400
    found = fisher_diag(model, [(x, y)], estimator="mc", n_samples=samples)
    exact = dense.diagonal(model, x, y)
    fourth = {name: torch.zeros_like(F) for name, F in exact.items()}
    second = {name: torch.zeros_like(F) for name, F in exact.items()}
    for i in range(N):
        p = model(x[i]).softmax(-1).detach()
        squares = [
            dense.diagonal(model, x[i : i + 1], torch.tensor([k]), estimator="empirical") for k in range(CLASSES)
        ]
        for name in exact:
            mean = sum(p[k] * squares[k][name] for k in range(CLASSES))
            second[name] += mean
            fourth[name] += sum(p[k] * squares[k][name].square() for k in range(CLASSES)) - mean.square()
    z = torch.cat([((found[n] - exact[n]) / (fourth[n].sqrt() / N / samples**0.5)).flatten() for n in exact])
    for name in exact:
        torch.testing.assert_close(second[name] / N, exact[name])
    assert z.abs().max() < 3.5  # 51 numbers
    assert (z.abs() < 3).double().mean() > 0.97
    assert 0.5 < z.square().mean() < 2.0  # and no closer than chance allows
    again = fisher_diag(model, [(x, y)], estimator="mc", n_samples=samples)
    other = fisher_diag(model, [(x, y)], estimator="mc", n_samples=samples, generator=torch.Generator().manual_seed(5))
    assert again == found
    assert other != found


def test_the_standard_error_is_that_of_the_mean_over_units():
    """Batches of one example: the textbook's. And of larger ones: as far as means of other data are from each other."""
    model, x, y = animal("mlp")
    each = [dense.diagonal(model, x[i : i + 1], y[i : i + 1], estimator="empirical") for i in range(N)]
    found = fisher_diag(model, zip(x.split(1), y.split(1), strict=True), estimator="empirical")
    for name, error in found.standard_error.items():
        torch.testing.assert_close(error, torch.stack([F[name] for F in each]).std(0) / N**0.5)
    assert fisher_diag(model, [(x, y)]).standard_error is None

    many = torch.randn(60 * 24, 4, dtype=torch.float64)
    labels = torch.randint(CLASSES, (60 * 24,))
    means, errors = [], []
    for xs, ys in zip(many.split(24), labels.split(24), strict=True):
        F = fisher_diag(model, zip(xs.split([7, 7, 7, 3]), ys.split([7, 7, 7, 3]), strict=True), estimator="empirical")
        means.append(F["2.weight"])
        errors.append(F.standard_error["2.weight"])
    ratio = torch.stack(errors).square().mean(0) / torch.stack(means).var(0)
    assert 0.75 < ratio.mean() < 1.33


def test_batched_is_the_square_of_the_mean():
    model, x, y = animal("mlp")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for xs, ys in ((x[:3], y[:3]), (x[3:], y[3:])):
        loss = functional.cross_entropy(model(xs), ys)
        for name, g in zip(expected, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            expected[name] += g.square() / 2
    agree(fisher_diag(model, [(x[:3], y[:3]), (x[3:], y[3:])], estimator="batched"), expected)


@pytest.mark.parametrize("kind", [tuple, dict])
def test_inputs_in_a_sequence_or_a_mapping(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.bare = nn.Linear(4, CLASSES).double(), nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, a, b):
            return self.linear(a * self.bare + b)

    model, x = Two(), vectors(4)
    shared = torch.ones(4, dtype=torch.float64)  # for all examples
    inputs = (x, shared) if kind is tuple else {"a": x, "b": shared}
    found = fisher_diag(model, [(inputs, classes())], max_examples=3)
    model.forward = lambda a: Two.forward(model, a, shared)
    agree(found, dense.diagonal(model, x[:3], classes()[:3]))
    assert found.units == 3


def hooks_of(module):
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


class Mixture(nn.Module):
    """Formulas, a module of its own way, a bare parameter, dropout: everything there is to leave a trace."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4))
        self.bare, self.last = nn.Parameter(torch.ones(4)), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.net(x) * self.bare)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ["exact", "mc", "empirical", "batched"])
def test_nothing_is_left_behind(estimator, training):
    model = Mixture().train(training)
    fired = []
    model.last.weight.register_hook(lambda g: fired.append("gradient"))
    model.last.weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    model.bare.grad = torch.full((4,), 7.0)
    before = copy.deepcopy(model.state_dict())
    hooks = [hooks_of(module) for module in model.modules()]
    state = torch.get_rng_state()
    with torch.no_grad():
        fisher_diag(model, [(vectors(4).float(), classes())], estimator=estimator)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert [m.training for m in model.modules()] == [training] * 6
    assert [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    ] == hooks
    assert model.last.weight.grad is None
    assert torch.equal(model.bare.grad, torch.full((4,), 7.0))
    assert all(p.requires_grad for p in model.parameters())
    assert fired == []


def test_low_precision_is_squared_in_float32():
    model, x, y = animal("mlp")
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = fisher_diag(half, [(x.bfloat16(), y)], estimator="empirical")
    assert found.dtype == torch.float32
    expected = fisher_diag(model, [(x, y)], estimator="empirical")
    assert found.trace() == pytest.approx(expected.trace(), rel=0.05)


def without_statistics():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)).eval()


@pytest.mark.parametrize(
    ("model", "targets", "how", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), classes, {}, ValueError, r"1 \(BatchNorm.*eval"),
        (without_statistics, classes, {}, ValueError, "statistics from the batch"),
        (lambda: nn.LazyLinear(3), classes, {}, ValueError, "no shape yet"),
        (lambda: nn.Linear(4, 3).requires_grad_(False), classes, {}, ValueError, "no parameter that requires"),
        (lambda: nn.Linear(4, 3), lambda: classes(2), {}, ValueError, r"shape \(5, 3\) need targets of shape \(5,\)"),
        (lambda: nn.Linear(4, 3), lambda: vectors(3), {}, ValueError, "must be class indices"),
        (lambda: nn.Linear(4, 3), lambda: classes() * 0 - 100, {}, ValueError, "no label that counts"),
        (lambda: nn.Linear(4, 3), classes, {"estimator": "optimizer"}, ValueError, "estimator must be one of"),
        (lambda: nn.Linear(4, 3), classes, {"unit": "batch"}, ValueError, "unit must be one of"),
        (lambda: nn.Linear(4, 3), classes, {"n_samples": 0}, ValueError, "n_samples must be >= 1, got 0"),
        (lambda: nn.Linear(4, 3), classes, {"max_examples": 0}, ValueError, "max_examples must be >= 1, got 0"),
        (lambda: nn.Linear(4, 3), classes, {"likelihood": "poisson"}, ValueError, "'gaussian' or a function"),
        (lambda: nn.Linear(4, 3), classes, {"likelihood": 3}, TypeError, "likelihood must be a name"),
        (lambda: nn.Linear(4, 3), classes, {"mask": lambda x, y: y[:2] > 0}, ValueError, r"shape \(5,\), got \(2,\)"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), classes, {}, ValueError,
         "examples must be its first dimension"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_a_reason(model, targets, how, error, message):
    with pytest.raises(error, match=message):
        fisher_diag(model(), [(vectors(4).float(), targets())], **how)


def test_data_that_is_no_pairs_is_refused():
    with pytest.raises(TypeError, match=r"pairs \(inputs, targets\).*got dict"):
        fisher_diag(nn.Linear(4, 3), [{"x": vectors(4), "y": classes()}])
