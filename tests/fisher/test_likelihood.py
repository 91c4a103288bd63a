"""Losses whose nature is known, and what is found."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fisheropt.fisher import check_likelihood
from fisheropt.fisher.identities import derivatives_of, identities_of
from fisheropt.fisher.labels import classes

UNITS = 4
LOGITS, CLASSES = torch.zeros(UNITS, 5), torch.tensor([0, 3, 1, 4])
ONE, BITS = torch.zeros(UNITS, 1), torch.tensor([[0.0], [1.0], [1.0], [0.0]])
REALS = torch.tensor([[0.3], [-1.0], [2.5], [0.1]])
WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def focal(z, y):
    log_p = z.log_softmax(-1).gather(1, y[:, None])
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


def gaussian(z, y):
    return functional.gaussian_nll_loss(z[:, 0], y, z[:, 1].exp(), full=True)


CASES = {
    "cross-entropy": (functional.cross_entropy, LOGITS, CLASSES, "discrete"),
    "cross-entropy, sum": (lambda z, y: functional.cross_entropy(z, y, reduction="sum"), LOGITS, CLASSES, "discrete"),
    "cross-entropy of tokens": (
        lambda z, y: functional.cross_entropy(z.flatten(0, 1), y.flatten()),
        torch.zeros(2, 3, 5),
        torch.tensor([[0, 1, 2], [4, 4, 0]]),
        "discrete",
    ),
    "cross-entropy of channels": (
        functional.cross_entropy,
        torch.zeros(2, 4, 3),
        torch.tensor([[0, 1, 2], [3, 3, 0]]),
        "discrete",
    ),
    "class weights": (lambda z, y: functional.cross_entropy(z, y, weight=WEIGHT.to(z)), LOGITS, CLASSES, "none"),
    "label smoothing": (
        lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.1),
        LOGITS,
        CLASSES,
        "soft-target",
    ),
    "soft targets": (functional.cross_entropy, LOGITS, torch.rand(UNITS, 5).softmax(1), "soft-target"),
    "one-hot targets": (functional.cross_entropy, LOGITS, functional.one_hot(CLASSES, 5).float(), "discrete"),
    "BCE": (functional.binary_cross_entropy_with_logits, ONE, BITS, "discrete"),
    "BCE of many": (functional.binary_cross_entropy_with_logits, torch.zeros(2, 7), torch.eye(2, 7), "discrete"),
    "BCE, soft": (functional.binary_cross_entropy_with_logits, ONE, 0.8 * BITS + 0.1, "soft-target"),
    "BCE, smoothed": (
        lambda z, y: functional.binary_cross_entropy_with_logits(z, 0.8 * y + 0.1),
        ONE,
        BITS,
        "soft-target",
    ),
    "logistic": (lambda z, y: functional.softplus(-y * z).mean(), ONE, 2 * BITS - 1, "discrete"),
    "Poisson": (functional.poisson_nll_loss, ONE, torch.tensor([[3.0], [0.0], [1.0], [2.0]]), "discrete"),
    "MSE": (functional.mse_loss, ONE, REALS, "density"),
    "MSE of many": (functional.mse_loss, torch.zeros(2, 3), torch.randn(2, 3), "density"),
    "Gaussian": (gaussian, torch.zeros(UNITS, 2), REALS[:, 0], "density"),
    "L1": (functional.l1_loss, ONE, REALS, "density"),
    "hinge": (lambda z, y: (1 - y * z).clamp(min=0).mean(), ONE, 2 * BITS - 1, "none"),
    "margins of classes": (functional.multi_margin_loss, LOGITS, CLASSES, "none"),
    "focal": (focal, LOGITS, CLASSES, "none"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_loss_is(name):
    loss, outputs, targets, kind = CASES[name]
    found = check_likelihood(loss, outputs, targets)
    assert found.kind == kind
    assert found.covered == (kind == "discrete")
    assert found.auxiliary == ()
    if kind in ("discrete", "density"):
        exact = 1e-9 if kind == "discrete" else 5e-3
        assert found.spread < exact
        assert found.score < exact
        assert found.information < exact or name == "L1"
    elif "soft targets" not in name and name != "BCE, soft":  # these are likelihoods of labels that are not soft
        assert found.spread > 0.01
        assert found.score > 0.01
    assert len(str(found).splitlines()) >= 4


def test_the_numbers_of_a_smoothed_cross_entropy():
    """Of a loss for which nothing is zero: log Z, score and information identity, from closed forms in NumPy."""
    n, rng = 5, np.random.default_rng(0)
    q = 0.02 + 0.9 * np.eye(n)
    z, v = rng.normal(size=(4, n)), rng.normal(size=(3, n))
    log_masses, scores, informations = [], [], []
    for draw in z:
        log_p = draw - np.log(np.exp(draw).sum())
        losses = -q @ log_p
        weights = np.exp(-losses) / np.exp(-losses).sum()
        slopes = (np.exp(log_p) - q) @ v.T
        hessian = np.diag(np.exp(log_p)) - np.outer(np.exp(log_p), np.exp(log_p))
        square, curvature = weights @ slopes**2, np.einsum("di,ij,dj->d", v, hessian, v)
        log_masses.append(np.log(np.exp(-losses).sum()))
        scores.append(np.abs(weights @ slopes) / np.sqrt(square))
        informations.append(np.abs(square - curvature) / square)

    def loss(z, y):
        return functional.cross_entropy(z, y, label_smoothing=0.1)

    def label(k):
        return k.reshape(1)

    entries, labels = torch.arange(n), classes(n)
    derivatives = [derivatives_of(loss, torch.tensor(d)[None], entries, label, labels, torch.tensor(v)) for d in z]
    found = identities_of(derivatives, labels, scale=1.0)
    assert found == pytest.approx((np.ptp(log_masses), np.max(scores), np.max(informations)), rel=1e-10)
    assert min(found) > 0.01
    assert check_likelihood(loss, LOGITS, CLASSES).target == pytest.approx(q[0])


@pytest.mark.parametrize(
    ("name", "mass"),
    [("cross-entropy", 1), ("BCE", 1), ("Poisson", 1), ("MSE", math.sqrt(math.pi)), ("L1", 2), ("Gaussian", 1)],
)
def test_the_total_of_a_likelihood(name, mass):
    loss, outputs, targets, _ = CASES[name]
    assert check_likelihood(loss, outputs, targets).mass == pytest.approx(mass, rel=1e-6)


def test_a_mean_over_labels_is_seen():
    assert check_likelihood(functional.cross_entropy, LOGITS, CLASSES).scale == 2  # two units are looked at
    assert check_likelihood(functional.cross_entropy, LOGITS[:1], CLASSES[:1]).scale == 1
    assert "mean over labels" in str(check_likelihood(functional.cross_entropy, LOGITS, CLASSES))


def test_kinks_are_named():
    found = check_likelihood(functional.l1_loss, ONE, REALS)
    assert found.information == pytest.approx(1.0)
    assert any("kinks" in sentence for sentence in found.consequences)


def test_a_penalty_on_weights_is_named():
    model = nn.Linear(3, 5)
    plain = lambda z, y: functional.cross_entropy(z, y)  # noqa: E731
    assert check_likelihood(plain, LOGITS, CLASSES, parameters=model).auxiliary == ()
    found = check_likelihood(
        lambda z, y: functional.cross_entropy(z, y) + 0.1 * model.weight.square().sum(),
        LOGITS,
        CLASSES,
        parameters=model,
    )
    assert found.kind == "discrete"
    assert not found.covered
    assert found.auxiliary == ("a term of the parameters (weight)",)
    assert "Section 3.4.3" in str(found)


def test_terms_by_name():
    w = torch.ones(3, requires_grad=True)

    def terms(z, y):
        return {
            "nll": functional.cross_entropy(z, y),
            "l2": w.square().sum(),
            "z_loss": 1e-2 * z.logsumexp(-1).square().mean(),
        }

    assert check_likelihood(terms, LOGITS, CLASSES).auxiliary == ("l2", "z_loss")
    assert check_likelihood(terms, LOGITS, CLASSES).kind == "discrete"
    with pytest.raises(ValueError, match="no term of the loss depends on the targets: only"):
        check_likelihood(lambda z, y: {"only": z.square().sum()}, LOGITS, CLASSES)


def test_a_penalty_on_outputs_is_told_from_smoothing():
    found = check_likelihood(
        lambda z, y: functional.cross_entropy(z, y) + 0.1 * z.logsumexp(-1).square().mean(), LOGITS, CLASSES
    )
    assert (found.kind, found.auxiliary) == ("discrete", ("a term of the outputs alone",))
    assert found.spread > 0.01


def test_bad_input():
    with pytest.raises(ValueError, match="hold no unit"):
        check_likelihood(functional.cross_entropy, LOGITS[:0], CLASSES[:0])
    with pytest.raises(ValueError, match="not finite at outputs"):
        check_likelihood(lambda z, y: z.log().sum() * y.sum(), LOGITS, CLASSES)
    with pytest.raises(ValueError, match="does not depend on the targets"):
        check_likelihood(lambda z, y: z.square().sum(), LOGITS, CLASSES)
