"""A Fisher diagonal: a mapping that says what it is, goes to disk and comes back, and refuses what makes no sense."""

import subprocess
import sys

import pytest
import torch

from fisheropt.fisher import FisherDiagonal


def diagonal(**changes):
    values = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.tensor([0.5, 1e-30])}
    errors = {name: F / 7 for name, F in values.items()}
    known = {"estimator": "mc", "likelihood": "categorical", "unit": "token", "units": 12, "masked_units": 3}
    return FisherDiagonal(values, **{**known, "standard_error": errors, **changes})


def test_it_is_a_mapping_with_its_circumstances():
    F = diagonal()
    assert list(F) == ["0.weight", "0.bias"]
    assert len(F) == 2
    assert F["0.weight"].shape == (2, 3)
    assert (F.estimator, F.likelihood, F.unit, F.units, F.masked_units) == ("mc", "categorical", "token", 12, 3)
    assert F.dtype == torch.float32
    assert F.trace() == 15.5
    assert repr(F) == (
        "FisherDiagonal(mc, categorical: 2 parameters, 8 numbers, per token over 12 (3 masked), trace 15.5, "
        "torch.float32)"
    )


def test_another_dtype_takes_the_errors_along():
    F = diagonal().to(dtype=torch.float64)
    assert F.dtype == F.standard_error["0.bias"].dtype == torch.float64
    assert F.metadata() == diagonal().metadata()


@pytest.mark.parametrize("changes", [{}, {"standard_error": None}, {"masked_units": 0, "likelihood": "my_nll"}])
def test_a_file_holds_all_of_it(tmp_path, changes):
    F = diagonal(**changes)
    F.save(tmp_path / "fisher.safetensors")
    assert FisherDiagonal.load(tmp_path / "fisher.safetensors") == F


@pytest.mark.parametrize(
    "changes",
    [{"units": 13}, {"estimator": "exact"}, {"standard_error": None}],
)
def test_equal_means_in_everything(changes):
    assert diagonal() == diagonal()
    assert diagonal() != diagonal(**changes)
    assert diagonal() != dict(diagonal())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "guess"}, "estimator must be one of .* got 'guess'"),
        ({"unit": "batch"}, "unit must be one of .* got 'batch'"),
        ({"units": -1}, "units must be >= 0, got -1"),
        ({"masked_units": -1}, "masked_units must be >= 0, got -1"),
        ({"standard_error": {"0.weight": torch.zeros(2, 3)}}, "names and shapes"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        diagonal(**changes)


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors holds no Fisher diagonal"):
        FisherDiagonal.load(tmp_path / "other.safetensors")


def test_without_safetensors_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "import torch, fisheropt.fisher as fisher\n"
        "F = fisher.FisherDiagonal({'p': torch.ones(1)}, estimator='exact', likelihood='gaussian', units=1)\n"
        "try: F.save('nowhere')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'fisheropt[fisher]'" in done.stdout, done.stderr
