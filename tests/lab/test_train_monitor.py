"""`fisheropt train --monitor`: its lines, also over an interruption, and a run that is the same with and without."""

import json
import shutil

import pytest
from tests.lab.small import text_file
from tests.lab.test_train import HALF, STEPS, command, curve, run

from fisheropt_lab.errors import LabError
from fisheropt_lab.train.request import TrainRequest, prepare


def lines(folder):
    return [json.loads(line) for line in (folder / "monitor.jsonl").read_text().splitlines()]


def test_the_same_run_with_lines(tmp_path):
    text = text_file(tmp_path)
    alone, watched, resumed = (tmp_path / name for name in ("alone", "watched", "resumed"))
    assert run(command(text, "fadam", alone)) == 0
    assert run(command(text, "fadam", watched, "--monitor", "3")) == 0
    assert not (alone / "monitor.jsonl").exists()
    assert curve(watched) == curve(alone)
    found = lines(watched)
    assert [line["step"] for line in found] == [1, 3, 6]  # before the interruption below, and after it
    assert 3 <= HALF < 6
    assert "blocks.0.gate.weight" in found[0]["parameters"]
    assert found[0]["total"]["clipped"] is not None

    shutil.copytree(watched, resumed)  # as if its process had been killed after the first half
    shutil.rmtree(resumed / "checkpoints" / f"step-{STEPS:08d}")
    assert run(command(text, "fadam", resumed, "--monitor", "3", "--resume")) == 0
    assert lines(resumed) == found


def test_what_it_cannot_look_at(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LabError, match="--monitor looks at whole tensors, and fsdp2 shards them"):
        prepare(TrainRequest(parallel="fsdp2", monitor=5), None)
    with pytest.raises(LabError, match="--monitor must be at least 0, not -1"):
        prepare(TrainRequest(parallel="ddp", monitor=-1), None)
