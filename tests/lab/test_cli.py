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
from fisheropt_lab.run_folder import RunFolder

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
        ("compare text --jobs 0", "--jobs must be at least 1, not 0"),
        ("compare text --tune beta2", "unknown --tune 'beta2'; known are lr, lr,weight_decay,beta2"),
        ("compare text --tokenizer t.json", "--tokenizer needs --data"),
        ("compare text --executor kubernetes", "unknown executor 'kubernetes'; known are local, slurm"),
        ("compare text --cluster timeout_min=5", "--cluster applies to --executor slurm only"),
        ("compare digits --set loss", "--set takes NAME=VALUE, not 'loss'"),
        ("compare digits --set colour=red", "--set colour does not apply to digits"),
        ("compare digits --set loss=hinge", "unknown loss 'hinge'; known are cross-entropy, squared"),
        ("ablate exponant", "unknown ablation 'exponant'; did you mean 'exponent'?"),
        ("ablate exponent --task speach", "unknown task 'speach'"),
        ("ablate loss --task text", "text has one loss only; tasks with a choice of losses: "),
        ("info --size 1b", "the options are those of a task: name one"),
        ("info text --size 2b", "unknown size '2b'; known are tiny, small, base, 1b"),
        ("results .", ". holds no run"),
        ("plot .", ". holds no run"),
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


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("compare", "ablate", "results", "plot", "report", "info"))],
)
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
    """Two optimizers, two learning rates, two seeds: all artefacts, and the protocol in the numbers."""
    arguments = ("compare", "text", "--data", text_file(tmp_path), "--steps", "4", "--seeds", "2", "--lrs", "x0.5,x1")
    arguments += (*SHORT, "--tune", "lr", "--jobs", "1", "--optimizers", "sgd,fadam")
    code, out, err = fisheropt(*arguments)
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "text-default"
    assert {"results.json", "table.md", "curves.png", "report.html", "sweep.sqlite"} < {
        path.name for path in run.iterdir()
    }
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((run / "results.json").read_text())
    assert [row["optimizer"] for row in results["summary"]] == ["sgd", "fadam"]
    tuning = [trial for trial in results["trials"] if trial["seed"] == 0]
    fresh = [trial for trial in results["trials"] if trial["seed"] != 0]
    assert len(tuning) == 4
    assert all(trial["test"] is None for trial in tuning)
    assert all(trial["test"] is not None for trial in fresh)
    assert {trial["seed"] for trial in fresh} == {1, 2}
    for row in results["summary"]:
        assert f"{row['tuned']['test']['nats/byte']['mean']:.4f}" in out
    assert not list(run.rglob("*.pt")), "checkpoints are not needed any more"

    table = (run / "table.md").read_text()
    (run / "table.md").unlink()
    (run / "curves.png").unlink()
    assert fisheropt("report", run)[0] == 0
    assert (run / "table.md").read_text() == table
    (run / "curves.png").unlink()
    assert fisheropt("plot", run)[0] == 0
    assert (run / "curves.png").exists()

    code, out, _ = fisheropt("results", run, "--csv", "--optimizer", "fadam", "--seed", "0", "--sort", "lr")
    lines = out.strip().splitlines()
    assert code == 0
    assert [line.split(",")[0] for line in lines] == ["id", "fadam-lr0.002-seed0", "fadam-lr0.004-seed0"]
    assert "0 trainings" in fisheropt("results", run, "--diverged")[1]
    assert f"{len(fresh)} trainings" in fisheropt("results", run, "--tested")[1]
    assert "0 trainings" in fisheropt("results", run, "--option", "rho=0.5")[1]

    code, _, err = fisheropt(*arguments, "--out", run)
    assert (code, err) == (
        2,
        f"fisheropt: {run} already holds a run; add --resume to continue it, or name another --out\n",
    )
    code, _, err = fisheropt(*arguments, "--resume", "--steps", "5")
    assert code == 2
    assert err.startswith("fisheropt: runs/text-default holds a different run (steps was 4, now 5")


def test_an_ablation(fisheropt, tmp_path):
    """The loss is a setting of the task: arms differ in it, and the accuracy judges."""
    options = "--task digits --steps 3 --seeds 2 --lrs x1 --batch-size 8 --jobs 1"
    code, _, err = fisheropt("ablate", "loss", *options.split())
    assert (code, err) == (0, "")
    run = tmp_path / "runs" / "digits-loss-default"
    results = json.loads((run / "results.json").read_text())
    rows = {row["key"]: row for row in results["summary"]}
    assert list(rows) == ["fadam-cross-entropy", "fadam-squared error", "adam-cross-entropy", "adam-squared error"]
    assert results["spec"]["judge"] == "accuracy"
    trial = next(one for one in results["trials"] if one["options"] == {"loss": "squared"})
    assert trial["id"].startswith("fadam-losssquared-lr")
    for row in rows.values():
        for track in ("tuned", "drop_in"):
            ours = row[track]["metrics"]["accuracy"]["per_seed"]
            theirs = rows["fadam-cross-entropy"]["tuned"]["metrics"]["accuracy"]["per_seed"]
            expected = [b - a for a, b in zip(ours, theirs, strict=True)]
            assert row[track]["difference"]["per_seed"] == pytest.approx(expected), "below zero is better"
    page = (run / "report.html").read_text()
    assert "A discrete likelihood, against a continuous one" in page
    assert "nats/image" not in (run / "table.md").read_text()


def test_info_of_a_task_counts_what_nobody_could_hold(fisheropt):
    code, out, _ = fisheropt("info", "text", "--size", "1b")
    assert code == 0
    assert "1,066,964,992 parameters" in out
    states = dict(re.findall(r"│ ([\w-]+) +│ [\d.]+ [KMGT]iB +│ ([\d.]+) ", out))
    assert set(states) == set(CONTENDERS)
    assert states["adamw"] == states["fadam"] == "8.00"
    assert states["sgd"] == "4.00"


def test_digits(fisheropt, tmp_path):
    """AdaFisher, its control and what F was: in the trials, the table, the verdict and the page."""
    arguments = "compare digits --steps 8 --seeds 2 --lrs x0.5,x1 --batch-size 16 --tune lr --jobs 1"
    code, out, err = fisheropt(*arguments.split(), "--optimizers", "sgd,adafisher")
    assert (code, err) == (0, "")
    assert "SGD control: AdaFisher where its curvature changes nothing" in out
    run = tmp_path / "runs" / "digits-default"
    results = json.loads((run / "results.json").read_text())

    entries = results["spec"]["entries"]
    assert list(entries) == ["sgd", "adafisher", "sgd-control"]
    assert entries["sgd-control"]["lrs"] == pytest.approx([lr / 1e-3 for lr in entries["adafisher"]["lrs"]])
    sgd, adafisher, control = results["summary"]
    assert control["drop_in"]["lr"] == pytest.approx(adafisher["tuned"]["lr"] / 1e-3)
    assert adafisher["drop_in"] is None, "its learning rate is in another unit"
    assert 0 <= adafisher["near_damping"]["of_weights"] <= 1
    assert sgd["near_damping"] is control["near_damping"] is None
    assert 0 <= sgd["tuned"]["metrics"]["accuracy"]["mean"] <= 1

    header, _, first, second, _ = (run / "table.md").read_text().splitlines()[:5]
    assert "Test, tuned (accuracy %)" in header
    assert header.endswith("| F near lambda (% of weights) |")
    assert first.endswith("| - |")
    assert second.endswith(f"| {100 * adafisher['near_damping']['of_weights']:.1f} |")
    (finding,) = [line for line in results["verdict"] if "AdaFisher's learning rate divided by lambda" in line]
    assert f"F was within 10 % of lambda in {100 * adafisher['near_damping']['of_weights']:.1f} % of the" in finding
    page = (run / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name, _ in ConvNet().named_parameters())


def test_ctrl_c_and_resume(tmp_path):
    """A real process and a real SIGINT: exit code 130, one line that says how to go on, and finished trials stay."""
    command = [sys.executable, "-m", "fisheropt_lab", "compare", "text", "--data", str(text_file(tmp_path))]
    command += [*SHORT, "--steps", "60", "--seeds", "1", "--lrs", "x0.5,x1", "--optimizers", "sgd,adamw"]
    command += ["--tune", "lr", "--jobs", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    store = RunFolder(tmp_path / "runs" / "text-default").store
    while not (store.exists() and (tmp_path / "runs" / "text-default" / "run.json").exists() and store.rows()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    (line,) = err.strip().splitlines()
    assert line.startswith("stopped; go on with:  fisheropt compare text ")
    assert line.endswith("--out runs/text-default --resume")

    kept = store.results()
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    after = store.results()
    assert {trial: after[trial] for trial in kept} == kept
    assert "(done before)" in again.stdout
    assert len(after) >= 6  # two learning rates of two optimizers, and a fresh seed of each
