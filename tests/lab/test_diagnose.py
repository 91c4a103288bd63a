import json
import sys

import pytest

from fisheropt_lab import cli


@pytest.fixture
def fisheropt(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fisheropt", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.mark.parametrize("optimizer", ["fadam", "adamw"])
def test_digits(fisheropt, tmp_path, optimizer):
    """The table, the picture and the page say the numbers of diagnosis.json."""
    arguments = "diagnose digits --steps 12 --looks 2 --batches 3 --threads 1 --optimizer"
    code, out, err = fisheropt(*arguments.split(), optimizer)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "diagnose-digits"
    assert {path.name for path in folder.iterdir()} == {
        "diagnosis.json",
        "diagnosis.png",
        "diagnosis.html",
        "monitor.jsonl",
    }
    lines = [json.loads(line) for line in (folder / "monitor.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))  # those of the diagnoses are not among them
    assert (folder / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["plan"]["looks"] == [6, 12]
    first, last = found["looks"]
    assert (first["step"], last["step"]) == (6, 12)
    assert last["estimator"] == "exact"
    assert (last["batch_size"], last["labels"]) == (32, 1)
    total = last["total"]["fisher"]
    assert 0 < total["cosine"] <= 1
    page = (folder / "diagnosis.html").read_text()
    for layer in last["layers"]:
        assert f"<td>{layer['name']}</td>" in page
        assert layer["name"] in out
        assert (layer["step"]["clip"] is None) == (optimizer == "adamw")
    assert f"{total['cosine']:.2f}" in out
    for question, answer in last["findings"]:
        assert question.split()[0] in out
        assert answer in page
    assert "covered: the negative log-likelihood" in page

    code, _, err = fisheropt(*arguments.split(), optimizer, "--out", str(folder))
    assert (code, err) == (2, f"fisheropt: {folder} already holds a diagnosis; name another --out\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("diagnose digit", "unknown task 'digit'; did you mean 'digits'?"),
        ("diagnose digits --optimizer sgd", "unknown optimizer 'sgd'; known are fadam, fadafactor, adam, adamw"),
        ("diagnose digits --batches 1", "--batches must be at least 2"),
        ("diagnose digits --steps 0", "--steps must be at least 1, not 0"),
        ("diagnose digits --lr=-1", "--lr must be positive, not -1"),
        ("diagnose", "Missing argument 'task'."),
    ],
)
def test_bad_input_gets_one_line(fisheropt, tmp_path, arguments, line):
    code, out, err = fisheropt(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"fisheropt: {line}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
