"""B f out of the state of optimizers: by hand, for every storage, and as an estimate of the empirical Fisher."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fisheropt
from fisheropt import FAdafactor, FAdam, fisher_from_optimizer
from fisheropt.baselines import Adam
from fisheropt.fisher import fisher_diag

B, BETA2 = 16, 0.9


def small():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


def stepped(optimizer, model, steps=4):
    """Steps with lr=0 on known gradients: their squares, by name, oldest first."""
    squares = []
    for step in range(steps):
        x = torch.randn(B, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
        squares.append({name: p.grad.square() for name, p in model.named_parameters() if p.requires_grad})
    return squares


def average(squares):
    """The bias-corrected average with decay beta2."""
    weights = [BETA2 ** (len(squares) - 1 - i) for i in range(len(squares))]
    return {n: sum(w * s[n] for w, s in zip(weights, squares, strict=True)) / sum(weights) for n in squares[0]}


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: FAdam(ps, lr=0.0, betas=(0.9, BETA2), backend="eager"),
        lambda ps: Adam(ps, lr=0.0, betas=(0.9, BETA2), backend="eager"),
        lambda ps: torch.optim.Adam(ps, lr=0.0, betas=(0.9, BETA2)),
        lambda ps: torch.optim.AdamW(ps, lr=0.0, betas=(0.9, BETA2)),
    ],
    ids=["FAdam", "baselines.Adam", "torch Adam", "torch AdamW"],
)
def test_it_is_the_unbiased_average_times_the_batch_size(make):
    model = small()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    expected = average(stepped(optimizer, model))
    found = fisher_from_optimizer(optimizer, model, batch_size=B, unit="token")
    assert list(found) == ["0.bias", "2.weight", "2.bias"]
    assert (found.estimator, found.unit, found.units) == ("optimizer", "token", 4 * B)
    for name, f in expected.items():
        torch.testing.assert_close(found[name], B * f)


def test_names_from_the_optimizer_itself():
    model = small()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = FAdam(named, lr=0.0, betas=(0.9, BETA2), backend="eager")
    expected = average(stepped(optimizer, model))
    torch.testing.assert_close(dict(fisher_from_optimizer(optimizer, batch_size=1)), expected)


def test_the_rows_and_columns_of_fadafactor():
    model = nn.Linear(6, 3)
    optimizer = FAdafactor(model.parameters(), lr=0.0, betas=(0.9, BETA2), min_dim_size_to_factor=2, backend="eager")
    expected = average(stepped(optimizer, model))["weight"]
    found = fisher_from_optimizer(optimizer, model, batch_size=1)["weight"]
    torch.testing.assert_close(found.sum(0), expected.sum(0))
    torch.testing.assert_close(found.sum(1), expected.sum(1))


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"])
def test_small_state_is_widened(state_dtype):
    """8 bits of a block's largest number are far from f's smallest, so it is the sum that is compared."""
    model = nn.Linear(6, 1024)
    found = []
    for kept in (None, state_dtype):
        optimizer = FAdam(model.parameters(), lr=0.0, betas=(0.9, BETA2), state_dtype=kept, backend="eager")
        model.zero_grad()
        for step in range(3):
            model(torch.full((2, 6), 1.0 + step)).square().mean().backward()
            optimizer.step()
        found.append(fisher_from_optimizer(optimizer, model, batch_size=8))
    assert found[1].dtype == torch.float32
    assert found[1].trace() == pytest.approx(found[0].trace(), rel=0.02)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_batch_size_is_a_number_of_units(size):
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        fisher_from_optimizer(FAdam(small().parameters()), small(), batch_size=size)


def test_what_holds_nothing_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"FAdam holds no average.*no step yet"):
        fisher_from_optimizer(FAdam(model.parameters()), model, batch_size=8)
    model(torch.ones(1, 3)).sum().backward()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sgd.step()
    with pytest.raises(ValueError, match="SGD holds no average"):
        fisher_from_optimizer(sgd, model, batch_size=8)
    with pytest.raises(ValueError, match="the optimizer knows no names"):
        fisher_from_optimizer(torch.optim.Adam(model.parameters()), batch_size=8)


@pytest.fixture(scope="module")
def trained():
    """A small classifier at the end of training, on data whose labels are a matter of chance, and that data."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = torch.randn(2048, 8)
        y = torch.distributions.Categorical(logits=2 * torch.tanh(x @ torch.randn(8, 4))).sample()
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, x, y


@pytest.mark.parametrize("batch", [8, 64, 512])
def test_batch_size_times_f_is_the_trace_of_the_empirical_fisher(trained, batch):
    """While FAdam goes on training; f alone is off by the factor (SPEC section 5)."""
    model, x, y = trained
    start = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = FAdam(model.parameters(), lr=1e-5, betas=(0.9, 0.998), backend="eager")
    generator = torch.Generator().manual_seed(4)
    for _ in range(600):
        chosen = torch.randint(2048, (batch,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    found = fisher_from_optimizer(optimizer, model, batch_size=batch).trace()
    empirical = fisher_diag(model, [(x, y)], estimator="empirical").trace()
    model.load_state_dict(start)
    assert 0.9 < found / empirical < 1.1
    assert found / batch / empirical < 1.1 / batch


def test_the_public_name():
    assert fisheropt.fisher_from_optimizer is fisher_from_optimizer
