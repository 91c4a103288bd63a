"""Every optimizer on every backend against the oracle: the parameter, how far it moved, and every slot."""

from tests.cases import LONG, MATRICES, SCALES, SHAPES, TOLERANCE, WIDE, each_exact_dtype, each_rule, each_variation
from tests.rules.against import beyond, run


def shapes_of(scale):
    """Every shape at scale 1, and one of each kind (vector, matrix, batch of matrices) at the others."""
    return (*SHAPES, LONG) if scale == 1.0 else ((7,), *MATRICES)


@each_exact_dtype
@each_variation
def test_a_rule_is_the_oracles_at_every_scale(info, backend, variation, dtype):
    cases = run(info, SCALES, shapes_of, dtype=dtype, backend=backend, **(info.small | variation))
    assert not beyond(TOLERANCE[dtype], cases)


@each_exact_dtype
@each_rule
def test_a_large_matrix_under_the_defaults_is_the_oracles(info, backend, dtype):
    """With the default size to factor, one dimension below it and both above."""
    cases = run(info, (1.0,), lambda scale: (WIDE, (127, 300)), dtype=dtype, backend=backend)
    assert not beyond(TOLERANCE[dtype], cases)
