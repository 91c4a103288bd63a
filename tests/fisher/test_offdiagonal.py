"""What lies off the diagonal, against dense Fisher matrices in float64."""

import pytest
import torch
from torch import nn

from fisheropt.fisher import offdiagonal_mass

DOUBLE = {"dtype": torch.float64}


def dense(model, x):
    """The block of each parameter tensor: mean over examples of J' (diag(p) - pp') J, written out."""
    params = dict(model.named_parameters())

    def logits(p):
        return torch.func.functional_call(model, p, (x,))

    jacobians = torch.func.jacrev(logits)(params)
    p = logits(params).softmax(-1)
    F_z = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    blocks = {}
    for name, J in jacobians.items():
        J = J.flatten(2)
        blocks[name] = torch.einsum("uki,ukl,ulj->ij", J, F_z, J).detach() / len(x)
    return blocks


@pytest.mark.parametrize("probes", [50, 400])
def test_against_dense_matrices(probes):
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(9, 5, **DOUBLE), torch.randint(3, (9,))
    found = offdiagonal_mass(model, [(x[:4], y[:4]), (x[4:], y[4:])], probes=probes)
    for name, F in dense(model, x).items():
        mass = 1 - float(F.diagonal().square().sum() / F.square().sum())
        one = found[name]
        if F.shape[0] <= probes:
            assert one.standard_error == 0.0
            assert one.mass == pytest.approx(mass, rel=1e-9)
            assert one.frobenius == pytest.approx(float(F.norm()), rel=1e-9)
        else:
            assert 0 < one.standard_error < 0.05
            assert abs(one.mass - mass) < 4 * one.standard_error
    assert all(p.grad is None for p in model.parameters())


def test_a_diagonal_matrix_has_nothing_off_it():
    """Two outputs of one input each, of which only one is on at a time."""
    model = nn.Linear(4, 1, bias=False).double()
    found = offdiagonal_mass(model, [(torch.eye(4, **DOUBLE), torch.zeros(4, 1, **DOUBLE))], likelihood="gaussian")
    assert found["weight"].mass == pytest.approx(0.0, abs=1e-15)
    together = [(torch.ones(4, 4, **DOUBLE), torch.zeros(4, 1, **DOUBLE))]
    assert offdiagonal_mass(model, together, likelihood="gaussian")["weight"].mass == pytest.approx(1 - 1 / 4)


def test_bad_input():
    with pytest.raises(ValueError, match="probes must be at least 2, got 1"):
        offdiagonal_mass(nn.Linear(2, 2), [], probes=1)
