import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from tests.lab.small import text_file

from fisheropt_lab import cli
from fisheropt_lab.models.convnet import ConvNet
from fisheropt_lab.optimizers import CONTENDERS

SHORT = ("--batch-size", "2", "--seq-len", "16", "--threads", "1")


@pytest.fixture
def fisheropt(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fisheropt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("compare txt", "unknown task 'txt'; did you mean 'text'?"),
        ("compare digit", "unknown task 'digit'; did you mean 'digits'?"),
        ("compare digits --seq-len 16", "--seq-len does not apply to digits"),
        ("compare digits --data text.txt", "--data does not apply to digits"),
        ("compare digits --size small", "--size does not apply to digits"),
        ("compare digits --batch-size 0", "--batch-size must be at least 1, not 0"),
        ("compare digits --optimizers sgd,sgd-control", "sgd-control is a control: it needs adafisher or adafisherw "),
        ("compare digits --optimizers naturaladam --backend numba", "naturaladam: backend='numba' has no kernel for "),
        ("compare text --optimizers adamw,fadm", "unknown optimizer 'fadm'; did you mean 'fadam'?"),
        ("compare text --optimizers adamw,lion", "unknown optimizer 'lion'; known are adamw, fadam, "),
        ("compare text --optimizers adamw,adamw", "--optimizers names 'adamw' twice"),
        ("compare text --optimizers ,", "--optimizers names no optimizer"),
        ("compare text --size medium", "unknown size 'medium'; known are tiny, small, base, 1b"),
        ("compare text --lrs 0", "a learning rate must be positive and finite, not 0"),
        ("compare text --lrs=-1e-3", "a learning rate must be positive and finite, not -1e-3"),
        ("compare text --lrs nan", "a learning rate must be positive and finite, not nan"),
        ("compare text --lrs x0", "a learning rate must be positive and finite, not 0"),
        ("compare text --lrs 1e-3,fast", "--lrs takes numbers (1e-3,2e-3) or multiples (x0.5,x1,x2), not 'fast'"),
        ("compare text --lrs 1e-3,0.001", "--lrs names a value twice: 1e-3,0.001"),
        ("compare text --steps 0", "--steps must be at least 1, not 0"),
        ("compare text --seeds 0", "--seeds must be at least 1, not 0"),
        ("compare text --data missing.txt", "no such file or folder: "),
        ("compare text --device gpu", "unknown device 'gpu'; try cpu or cuda"),
        ("compare text --backend fast", "fadam: backend must be one of "),
        ("compare text --backend triton --device cpu", "fadam: backend='triton' "),
        ("compare text --resume", "nothing to resume: runs/text-default does not exist"),
        ("compare text --steps many", "Invalid value for '--steps': "),
        ("compare text --stps 3", "No such option: --stps"),
        ("compare", "Missing argument 'task'."),
        ("compete", "No such command 'compete'."),
        ("report .", ". holds no finished run"),
        ("show ewk", "unknown demonstration 'ewk'; did you mean 'ewc'?"),
        ("show merge --seeds 0", "--seeds must be at least 1, not 0"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(fisheropt, tmp_path, arguments, line):
    code, out, err = fisheropt(*arguments.split())
    assert code == 2
    assert err.startswith(f"fisheropt: {line}")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "holds no text: it is empty"),
        (b"too short", "the text is too short: "),
        (b"a" * 5000 + b"\xff", "is not UTF-8 text: bad byte at offset 5000"),
    ],
)
def test_bad_text_gets_one_line(fisheropt, tmp_path, content, line):
    (tmp_path / "text.txt").write_bytes(content)
    code, _, err = fisheropt("compare", "text", "--data", "text.txt")
    assert code == 2
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written(fisheropt, tmp_path):
    code, _, err = fisheropt("compare", "text", "--data", text_file(tmp_path), *SHORT, "--out", "sentences.txt/run")
    assert code == 2
    assert err == "fisheropt: cannot write to the folder sentences.txt/run: Not a directory\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(fisheropt):
    assert fisheropt("compare", "text", "--device", "cuda")[2] == (
        "fisheropt: device 'cuda' is not available on this machine\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["report", "--help"], ["info", "--help"]])
def test_help(fisheropt, arguments):
    code, out, err = fisheropt(*arguments)
    assert (code, err) == (0, "")
    assert "Usage: fisheropt" in out


def test_info_names_a_backend_for_every_optimizer(fisheropt):
    code, out, _ = fisheropt("info")
    assert code == 0
    assert f"torch {torch.__version__.partition('+')[0]}" in out
    rows = dict(re.findall(r"│ ([\w-]+) +│ ([\w ]+?) +│", out))
    assert set(rows) == set(CONTENDERS)
    assert rows["naturaladam"] == "eager"
    assert rows["adamw"] == "torch fused"
    assert rows["fadam"] in ("eager", "numba")


def test_a_whole_comparison(fisheropt, tmp_path):
    """Two optimizers, two learning rates, two seeds: all four artefacts, and the protocol in the numbers."""
    arguments = ("compare", "text", "--data", text_file(tmp_path), "--steps", "4", "--seeds", "2", "--lrs", "x0.5,x1")
    code, out, err = fisheropt(*arguments, *SHORT, "--optimizers", "sgd,fadam")
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "text-default"
    assert {"results.json", "table.md", "curves.png", "report.html"} < {path.name for path in run.iterdir()}
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((run / "results.json").read_text())
    assert [row["optimizer"] for row in results["summary"]] == ["sgd", "fadam"]
    assert len(results["trials"]) == 6
    for row in results["summary"]:
        assert len(row["test"]["nats/byte"]["per_seed"]) == 2
        assert f"{row['validation']['nats/byte']['mean']:.4f}" in out
    assert set(results["test_losses"]) == {
        f"{row['optimizer']}-lr{row['best_lr']:g}-seed{seed}" for row in results["summary"] for seed in (0, 1)
    }
    assert not list(run.rglob("*.pt")), "weights and checkpoints are not needed any more"
    assert re.findall(r"^(\d)/6 .* validation loss \d", out, re.MULTILINE) == list("123456")

    table = (run / "table.md").read_text()
    (run / "table.md").unlink()
    assert fisheropt("report", run)[0] == 0
    assert (run / "table.md").read_text() == table

    code, _, err = fisheropt(*arguments, *SHORT, "--optimizers", "sgd,fadam", "--out", run)
    assert (code, err) == (
        2,
        f"fisheropt: {run} already holds a run; add --resume to continue it, or name another --out\n",
    )
    code, _, err = fisheropt(*arguments, *SHORT, "--optimizers", "sgd,adamw", "--resume")
    assert code == 2
    assert err.startswith("fisheropt: runs/text-default holds a different run (lrs was ")


def test_digits(fisheropt, tmp_path):
    """AdaFisher, its control and what F was: in the trials, the table, the verdict and the page."""
    arguments = (
        "compare digits --steps 12 --seeds 2 --lrs x0.5,x1 --batch-size 16 --threads 1 --optimizers sgd,adafisher"
    )
    code, out, err = fisheropt(*arguments.split())
    assert (code, err) == (0, "")
    assert "SGD control: AdaFisher where its curvature changes nothing" in out
    run = tmp_path / "runs" / "digits-default"
    assert {"results.json", "table.md", "curves.png", "report.html"} < {path.name for path in run.iterdir()}
    results = json.loads((run / "results.json").read_text())

    lrs = results["spec"]["lrs"]
    assert list(lrs) == ["sgd", "adafisher", "sgd-control"]
    assert lrs["sgd-control"] == pytest.approx([lr / 1e-3 for lr in lrs["adafisher"]])
    trials = [trial["trial"]["optimizer"] for trial in results["trials"]]
    assert trials.count("sgd-control") == trials.count("adafisher") == trials.count("sgd") == 3

    layers = {name: p.numel() for name, p in ConvNet().named_parameters()}
    for trial in results["trials"]:
        watched = trial["trial"]["optimizer"] == "adafisher"
        assert {name: layer["entries"] for name, layer in trial["curvature"].items()} == (layers if watched else {})
    sgd, adafisher, control = results["summary"]
    assert 0 <= adafisher["near_damping"]["of_weights"] <= 1
    assert 0 <= adafisher["near_damping"]["median_layer"] <= 1
    assert sgd["near_damping"] is control["near_damping"] is None
    assert 0 <= sgd["metrics"]["accuracy"]["mean"] <= 1

    header, _, first, second, _ = (run / "table.md").read_text().splitlines()[:5]
    assert "Test (accuracy %)" in header
    assert header.endswith("| F near lambda (% of weights) |")
    assert first.endswith("| - |")
    assert second.endswith(f"| {100 * adafisher['near_damping']['of_weights']:.1f} |")
    (finding,) = [line for line in results["verdict"] if "AdaFisher's learning rates divided by lambda" in line]
    assert f"F was within 10 % of lambda in {100 * adafisher['near_damping']['of_weights']:.1f} % of the" in finding
    page = (run / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in layers)


def test_ctrl_c_and_resume(tmp_path):
    """A real process and a real SIGINT: exit code 130, one line that says how to go on, and finished trials stay."""
    command = [sys.executable, "-m", "fisheropt_lab", "compare", "text", "--data", str(text_file(tmp_path))]
    command += [*SHORT, "--steps", "60", "--seeds", "1", "--lrs", "x0.5,x1", "--optimizers", "sgd,adamw"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    trials = tmp_path / "runs" / "text-default" / "trials"
    while not (finished := list(trials.glob("*.json"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    (line,) = err.strip().splitlines()
    assert line.startswith("stopped; go on with:  fisheropt compare text ")
    assert line.endswith("--out runs/text-default --resume")

    kept = {path: path.read_bytes() for path in finished}
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert {path: path.read_bytes() for path in finished} == kept
    assert "(done before)" in again.stdout
    assert len(json.loads((trials.parent / "results.json").read_text())["trials"]) == 4
