"""Comparisons of diagonals against numbers worked out by hand and against scipy's definitions, written out."""

import math

import numpy as np
import pytest
import torch

from fisheropt.fisher import compare_fisher


def total(a, b, **options):
    return compare_fisher({"w": torch.tensor(a)}, {"w": torch.tensor(b)}, **options).total


def test_by_hand():
    found = total([1.0, 2.0, 2.0, 0.0], [4.0, 1.0, 0.0, 0.0], top=0.5)
    assert found.cosine == pytest.approx(6 / (3 * math.sqrt(17)))
    assert found.trace_ratio == 1.0
    # ranks 2, 3.5, 3.5, 1 and 4, 3, 1.5, 1.5
    ranks = np.corrcoef([2, 3.5, 3.5, 1], [4, 3, 1.5, 1.5])[0, 1]
    assert found.rank_correlation == pytest.approx(ranks)
    assert found.top_overlap == 0.5  # {1, 2} and {0, 1}


def test_ties_at_the_edge_of_the_top_count_in_part():
    assert total([1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], top=0.25).top_overlap == pytest.approx(1.0)
    assert total([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], top=0.25).top_overlap == 0.0
    assert total([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], top=0.25).top_overlap == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-30, 3.0, 1e30])
def test_shapes_are_compared_whatever_the_scale(scale):
    a, b = torch.rand(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    one, other = compare_fisher({"w": a}, {"w": b}).total, compare_fisher({"w": scale * a}, {"w": b}).total
    assert other.trace_ratio == pytest.approx(scale * one.trace_ratio)
    for name in ("cosine", "rank_correlation", "top_overlap"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-12)


def test_layers_and_total_in_float64():
    rng = np.random.default_rng(0)
    a = {"u": rng.gamma(0.2, size=(4, 5)), "v": rng.gamma(0.2, size=7)}
    b = {name: x * rng.gamma(3.0, size=x.shape) for name, x in a.items()}
    found = compare_fisher(*({name: torch.tensor(x) for name, x in d.items()} for d in (a, b)), top=0.2)
    cases = {name: (a[name].ravel(), b[name].ravel()) for name in a}
    cases["total"] = tuple(np.concatenate([x.ravel() for x in d.values()]) for d in (a, b))
    for name, (x, y) in cases.items():
        mine = found.total if name == "total" else found.layers[name]
        assert mine.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
        assert mine.trace_ratio == pytest.approx(x.sum() / y.sum(), rel=1e-12)
        order = [np.argsort(np.argsort(z)) for z in (x, y)]
        assert mine.rank_correlation == pytest.approx(np.corrcoef(*order)[0, 1], rel=1e-12)
        k = math.ceil(0.2 * len(x))
        assert mine.top_overlap == pytest.approx(len(set(np.argsort(-x)[:k]) & set(np.argsort(-y)[:k])) / k)
    assert str(found).splitlines()[-1].split()[:2] == ["all", "27"]


def test_what_is_not_defined_is_nan():
    found = total([0.0, 0.0], [1.0, 2.0])
    assert math.isnan(found.cosine)
    assert math.isnan(found.rank_correlation)
    assert math.isnan(total([1.0, 2.0], [0.0, 0.0]).trace_ratio)


def test_bad_input():
    w = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match=r"same names; only one has v"):
        compare_fisher(w, {"w": torch.ones(2), "v": torch.ones(1)})
    with pytest.raises(ValueError, match=r"shape of w: \(2,\) and \(3,\)"):
        compare_fisher(w, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"top must be in \(0, 1\], got 0"):
        compare_fisher(w, w, top=0)
