"""The demonstrations: small runs of each, going on with a run folder, and that the test part chooses nothing."""

import json

import pytest
import torch
from matplotlib.figure import Figure

from fisheropt_lab.errors import LabError
from fisheropt_lab.show import DEMONSTRATIONS, digit_nets, ewc, merge, prune, regression
from fisheropt_lab.show.demonstration import Demonstration, Table, difference_text
from fisheropt_lab.show.folder import ShowFolder, run_demonstration

ENVIRONMENT = {"versions": {"torch": "x"}}


@pytest.fixture
def short(monkeypatch):
    """Every demonstration with a handful of steps and two points on its grid."""
    monkeypatch.setattr(digit_nets, "WARMUP", 1)
    for module, changes in (
        (ewc, {"STEPS": 3, "STRENGTHS": (0.1, 1.0)}),
        (merge, {"BASE_STEPS": 3, "TUNING_STEPS": 3, "COEFFICIENTS": (0.4, 0.5)}),
        (prune, {"STEPS": 3, "AMOUNTS": (0.5, 0.9)}),
        (regression, {"STEPS": 4, "EVERY": 2, "LRS": (1e-3, 2e-3)}),
    ):
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_each_demonstration_runs_and_reports(name, short, tmp_path):
    demonstration = DEMONSTRATIONS[name]
    folder, ticks = ShowFolder(tmp_path), []
    folder.start(demonstration, ENVIRONMENT)
    runs = run_demonstration(demonstration, 2, folder, lambda seed, what: ticks.append(seed))
    assert ticks == [0] * demonstration.parts + [1] * demonstration.parts
    assert runs[0] != runs[1]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["seed"] for run in results["seeds"]] == [0, 1]
    for table in results["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert table["title"] in folder.table.read_text()
    assert folder.picture.read_bytes().startswith(b"\x89PNG")
    again = demonstration.run(1, lambda what: None)
    assert again == runs[1]  # a seed is all there is to chance


def counting(ran, protocol=("as ever",)):
    def run(seed, tick):
        ran.append(seed)
        return {"seed": seed}

    tables = lambda runs: (Table("T", ("a", "b"), tuple((str(run["seed"]), "x") for run in runs)),)  # noqa: E731
    return Demonstration("count", "", protocol, 5, 1, run, tables, lambda runs: Figure())


def test_seeds_that_are_there_are_not_run_again(tmp_path):
    ran, folder = [], ShowFolder(tmp_path)
    for seeds in (2, 3):
        folder.start(counting(ran), ENVIRONMENT)
        run_demonstration(counting(ran), seeds, folder, lambda seed, what: None)
    assert ran == [0, 1, 2]
    assert folder.table.read_text() == "**T**\n\n| a | b |\n| --- | --- |\n| 0 | x |\n| 1 | x |\n| 2 | x |\n"


@pytest.mark.parametrize(
    ("protocol", "environment", "what"),
    [(("changed",), ENVIRONMENT, "protocol"), (("as ever",), {"versions": {"torch": "y"}}, "versions")],
)
def test_seeds_of_another_run_are_not_mixed_in(tmp_path, protocol, environment, what):
    folder = ShowFolder(tmp_path)
    folder.start(counting([]), ENVIRONMENT)
    with pytest.raises(LabError, match=rf"holds a different run \(other {what}\); name another --out"):
        folder.start(counting([], protocol), environment)


def test_strengths_and_coefficients_are_chosen_on_validation(monkeypatch):
    monkeypatch.setattr(ewc, "STRENGTHS", (0.1, 1.0))
    monkeypatch.setattr(merge, "COEFFICIENTS", (0.4, 0.5, 0.6))
    held = {"0.1": {"validation": [80, 90], "test": [1, 1]}, "1": {"validation": [95, 60], "test": [99, 99]}}
    assert ewc.best_strength([{"methods": {"x": held}}], "x") == "0.1"
    merged = {c: {"validation": v, "test": 100 - v} for c, v in (("0.4", 80), ("0.5", 80), ("0.6", 70))}
    assert merge.best_coefficient([{"methods": {"x": merged}}], "x") == "0.5"


def test_regression_chooses_learning_rate_and_steps_on_the_mean_over_seeds(monkeypatch):
    monkeypatch.setattr(regression, "LRS", (0.1, 1.0))
    seeds = [([5.0, 3.0], [4.0, 9.0]), ([5.0, 7.0], [4.0, 1.0])]  # of validation, at both learning rates
    runs = [
        {"methods": {"x": {lr: {"validation": v, "test": [0.0, i]} for lr, v in zip(("0.1", "1"), both, strict=True)}}}
        for i, both in enumerate(seeds)
    ]
    assert regression.best(runs, "x") == ("1", 0)
    assert regression.tests(runs, "x") == [0.0, 0.0]


def test_the_parts_of_the_diabetes_data_are_disjoint_and_drawn_anew_for_every_seed():
    first, second = regression.split(0), regression.split(1)
    sizes = [len(first[part][1]) for part in ("train", "validation", "test")]
    assert sizes == [266, 88, 88]
    spread, mean = first["unit"]
    everyone = torch.cat([first[part][1] * spread + mean for part in ("train", "validation", "test")])
    torch.testing.assert_close(everyone.sort()[0], regression.patients()[1].sort()[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(first["train"][0].mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    assert not first["train"][1].equal(second["train"][1])


def test_the_halves_share_their_five_classes():
    for half, values in ((digit_nets.OLD, {0, 1, 2, 3, 4}), (digit_nets.NEW, {5, 6, 7, 8, 9})):
        assert set(digit_nets.digits("train", half)[1].tolist()) == values
        assert set(ewc.task("train", half)[1].tolist()) == {0, 1, 2, 3, 4}
    sizes = [len(digit_nets.digits("test", half)[1]) for half in (None, 0, 1)]
    assert sizes[0] == sizes[1] + sizes[2]


def test_differences_are_paired():
    assert difference_text([1.0, 2.0], [0.5, 1.5]) == "+0.5 (+0.5 to +0.5)"
    assert difference_text([1.0], [2.5]) == "-1.5"
    assert difference_text([2.0, 4.0], [1.0, 1.0], 2) == "+2.00 (-10.71 to +14.71)"  # t = 12.706, s/sqrt(2) = 1
