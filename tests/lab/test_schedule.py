import pytest

from fisheropt_lab.schedule import lr_scale


def test_values():
    scales = [lr_scale(step, steps=8, warmup=4) for step in range(9)]
    root = 2**-0.5
    assert scales == pytest.approx([0.25, 0.5, 0.75, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2, 0], abs=1e-15)


def test_a_run_that_is_all_warm_up():
    assert lr_scale(0, steps=1, warmup=1) == 1
