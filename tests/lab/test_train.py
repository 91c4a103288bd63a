"""One curve: a run on one process, on two with DDP, on two with FSDP2, and any of them gone on from by another.

float32, and the same sums in another order: each differs by a few units in the last place (6e-8 of the value), and
eight steps of a contraction towards a minimum do not grow that much. The tolerance is some thirty of these units. What
it has to catch is larger by orders of magnitude: a row computed twice or not at all moves the loss by 1e-2, a missing
mean over the processes or micro-batches by more, state that was not restored by 1e-3.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.lab.small import small_task, text_file

from fisheropt_lab import cli
from fisheropt_lab.errors import LabError
from fisheropt_lab.train.batches import micro_batches, rows_per_micro_batch
from fisheropt_lab.train.checkpoints import Checkpoints
from fisheropt_lab.train.world import World

TOLERANCE = 2e-6
HALF, STEPS = 4, 8
OPTIMIZERS = ("fadam", "adafisher")  # state split like the parameters; factors of layers beside it
SHORT = ("--batch-size", "4", "--seq-len", "16", "--threads", "1", "--steps", f"{STEPS}", "--eval-every", f"{HALF}")


def command(text: Path, optimizer: str, out: Path, *more: str) -> list[str]:
    common = ("train", "text", "--data", str(text), "--optimizer", optimizer, "--out", str(out), *SHORT)
    return [*common, "--checkpoint-every", f"{HALF}", "--backend", "eager", *more]


def run(arguments: list[str]) -> int:
    """The command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fisheropt", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return stop.value.code or 0


def halfway(finished: Path, copy: Path) -> Path:
    """A copy of a run, as if its process had been killed after the first half."""
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS:08d}")
    return copy


def curve(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "validation" in line] == [HALF, STEPS]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def what_a_run_leaves(runs: Path) -> None:
    folder = runs / "fadam" / "one"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "result.json",
        "train.json",
    }
    result = json.loads((folder / "result.json").read_text())
    last = curve(folder)[-1]
    assert (result["train_loss"], result["validation_loss"]) == (last["loss"], last["validation"])
    assert result["parameters"] == 983_680
    assert result["state_bytes"] == 8 * 983_680 + 8 * 30  # f and m, and the counters of the steps
    sharded = json.loads((runs / "fadam" / "fsdp2" / "result.json").read_text())
    assert {key: sharded[key] for key in ("parameters", "state_bytes")} == {
        key: result[key] for key in ("parameters", "state_bytes")
    }
    names = [path.name for path in sorted((folder / "checkpoints").iterdir())]
    assert names == [f"step-{HALF:08d}", f"step-{STEPS:08d}"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def the_validation_loss_is_the_one_that_compare_reports(runs: Path) -> None:
    """On the same weights: those of the last checkpoint, read back by torch's own converter."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = runs / "fadam" / "fsdp2"
    dcp_to_torch_save(folder / "checkpoints" / f"step-{STEPS:08d}", runs / "weights.pt")
    task = small_task(runs)
    model = task.model(0)
    model.load_state_dict(torch.load(runs / "weights.pt", weights_only=True)["model"])
    evaluated = task.evaluate(model, "validation", torch.device("cpu"))
    assert curve(folder)[-1]["validation"] == pytest.approx(evaluated, rel=TOLERANCE)


def train_all(root: Path) -> None:
    """Finished run folders by optimizer and name; all runs on two processes share one launch."""
    text = text_file(root)
    two = []
    for name in OPTIMIZERS:
        assert run(command(text, name, root / name / "one")) == 0
        halfway(root / name / "one", root / name / "one to two")
        two.append(command(text, name, root / name / "ddp", "--parallel", "ddp"))
        two.append(command(text, name, root / name / "one to two", "--parallel", "fsdp2", "--resume"))
        two.append(command(text, name, root / name / "fsdp2", "--parallel", "fsdp2", "--accumulate", "2"))
    (root / "lists.json").write_text(json.dumps(two))
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab.train_ranks", str(root / "lists.json")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name in OPTIMIZERS:
        halfway(root / name / "ddp", root / name / "ddp to one")
        halfway(root / name / "fsdp2", root / name / "fsdp2 to one")
        halfway(root / name / "one", root / name / "one to one")
    for folder in root.glob("*/* to one"):
        assert run(command(text, folder.parent.name, folder, "--resume")) == 0


def test_the_number_of_processes_does_not_change_the_curve(tmp_path):
    """One test, because starting processes is what takes the time."""
    train_all(tmp_path)
    ways = ("ddp", "fsdp2", "one to two", "ddp to one", "fsdp2 to one")
    for name in [f"{name}/{how}" for name in OPTIMIZERS for how in ways]:
        reference = curve(tmp_path / name.partition("/")[0] / "one")
        for ours, theirs in zip(curve(tmp_path / name), reference, strict=True):
            assert ours == pytest.approx(theirs, rel=TOLERANCE), name
    for name in OPTIMIZERS:
        assert curve(tmp_path / name / "one to one") == curve(tmp_path / name / "one"), "not bit for bit"
    what_a_run_leaves(tmp_path)
    the_validation_loss_is_the_one_that_compare_reports(tmp_path)


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (2, 1), (1, 3), (3, 4), (12, 1)])
def test_every_row_of_the_global_batch_is_in_one_micro_batch(size, accumulate):
    batch = torch.arange(24).view(12, 2), torch.arange(12)
    found = [
        rows
        for rank in range(size)
        for rows in micro_batches(batch, World(rank, size, torch.device("cpu")), accumulate)
    ]
    assert len(found) == size * accumulate
    assert all(len(inputs) == 12 // (size * accumulate) for inputs, _ in found)
    assert torch.equal(torch.cat([inputs for inputs, _ in found]), batch[0])
    assert torch.equal(torch.cat([targets for _, targets in found]), batch[1])


@pytest.mark.parametrize(("size", "accumulate"), [(5, 1), (4, 4), (24, 1)])
def test_a_batch_that_cannot_be_shared_equally_is_refused(size, accumulate):
    with pytest.raises(LabError, match=f"--batch-size a multiple of {size * accumulate}"):
        rows_per_micro_batch(12, size, accumulate)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, World(0, 1, torch.device("cpu")))
    for step in (8, 9, 10, 11):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "step-00000012.partial").mkdir()
    checkpoints._forget_old()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("digits", "unknown task 'digits'; known are text"),
        ("text --optimizer fadm", "unknown optimizer 'fadm'; did you mean 'fadam'?"),
        ("text --lr nan", "a learning rate must be positive and finite, not nan"),
        ("text --precision fp16", "unknown precision 'fp16'; known are float32, bfloat16"),
        ("text --parallel fsdp", "unknown way to be parallel 'fsdp'; did you mean 'fsdp2'?"),
        ("text --parallel ddp", "--parallel ddp needs processes to be started by torchrun: torchrun "),
        ("text --accumulate 3", "a global batch of 8 sequences cannot be cut into equal parts for 1 processes with 3 "),
        ("text --keep 0", "--keep must be at least 1, not 0"),
        ("text --checkpoint-every 0", "--checkpoint-every must be at least 1, not 0"),
        ("text --seed -1", "--seed must be at least 0, not -1"),
        ("text --backend triton --device cpu", "fadam: backend='triton' "),
    ],
)
def test_bad_input_gets_one_line(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"fisheropt: {line}")
    assert (err.count("\n"), out) == (1, "")
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_help(capsys):
    assert run(["train", "--help"]) == 0
    out, err = capsys.readouterr()
    assert "--resume" in out
    assert err == ""
