"""Fault drills: processes of `fisheropt train` are killed or stopped at the worst moments, and the run goes on.

    python benchmarks/fault_drills.py

Each drill starts real processes (torchrun, two of them, gloo), lets one of them kill itself with SIGKILL at a point of
its choice, resumes, and compares the loss curve with that of a run that was left alone. Prints a table and writes it
to benchmarks/results/fault_drills.md; the exit status says whether every drill went as it should. What needs no second
process (damaged, foreign and old checkpoints) is in tests/faults.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, EVERY = 12, 3
TOLERANCE = 2e-6  # relative; see tests/lab/test_train.py
RESULT = Path(__file__).parent / "results" / "fault_drills.md"
TEXT = "".join(f"Sentence number {i} is here, and {i * i % 97} is its remainder.\n" for i in range(400))
OPTIONS = ["--batch-size", "4", "--seq-len", "16", "--threads", "1", "--steps", f"{STEPS}", "--eval-every", "6"]
OPTIONS += ["--checkpoint-every", f"{EVERY}", "--backend", "eager"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ALONE = [sys.executable, __file__]
Process = subprocess.Popen[str]


# -- what a process runs: the command, with a fault built in ----------------------------------------------------------


def worker(fault: str, arguments: list[str]) -> None:
    """`fisheropt` with these arguments; DRILL_FAULT=POINT@RANK kills this process there, the first time only."""
    from fisheropt_lab import cli

    point, _, rank = fault.partition("@")
    if point and os.environ.get("RANK", "0") == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        plant(point)
    sys.argv = ["fisheropt", *arguments]
    cli.main()


def plant(point: str) -> None:
    """Replace a function by one that kills the process: in a step between checkpoints, or in the second checkpoint."""
    import torch
    from torch.distributed.checkpoint import filesystem

    from fisheropt_lab.train import checkpoints, manifest

    places = {
        "forward": (torch.nn.Embedding, "forward", 5),  # in the fifth step
        "optimizer": (torch.nn.utils, "clip_grad_norm_", 8),  # in the eighth
        "shards": (filesystem, "_write_item", 40),  # of more than a hundred in the first checkpoint
        "digests": (checkpoints, "digest_of", 2),  # process 1 reads one file per checkpoint
        "manifest": (manifest.Manifest, "to_text", 2),
        "rename": (checkpoints, "_force_to_disk", 11),  # three files, manifest, folder; the rename; the parent folder
    }
    owner, name, countdown = places[point]
    original, calls = getattr(owner, name), 0

    def lethal(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == countdown:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, lethal)


# -- the drills -------------------------------------------------------------------------------------------------------


class Drills:
    """Runs in one folder, and a line of the table for each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[tuple[str, str, str, bool]] = []
        (root / "text.txt").write_text(TEXT)

    def start(self, launcher: list[str], out: str, *more: str, fault: str = "", **variables: str) -> Process:
        train = ["train", "text", "--data", str(self.root / "text.txt"), "--out", str(self.root / out)]
        command = [*launcher, "--worker", *train, *OPTIONS, *more]
        environment = {**os.environ, "DRILL_FAULT": fault, "OMP_NUM_THREADS": "1", **variables}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, launcher: list[str], out: str, *more: str, fault: str = "", **variables: str) -> tuple[int, str]:
        """To its end: exit code, and everything it said."""
        process = self.start(launcher, out, *more, fault=fault, **variables)
        said = "".join(process.communicate(timeout=300))
        return process.returncode, said

    def curve(self, out: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (self.root / out / "metrics.jsonl").read_text().splitlines()]

    def left(self, out: str) -> str:
        """The names in the checkpoint folder."""
        names = sorted(path.name for path in (self.root / out / "checkpoints").iterdir())
        return ", ".join(name.replace("step-000000", "") for name in names)

    def judge(self, what: str, left: str, out: str, resumed: str, gone_on: tuple[int, str]) -> None:
        """Compare with the run that was left alone."""
        code, said = gone_on
        ours, reference = self.curve(out), self.curve("reference")
        worst = max(abs(a / b - 1) for a, b in zip(ours, reference, strict=False))
        fine = code == 0 and len(ours) == STEPS and worst <= TOLERANCE
        fine = fine and (resumed in said if resumed else "going on from" not in said)
        outcome = f"exit {code}, {len(ours)} of {STEPS} steps, largest difference of a loss {worst:.1e}"
        self.rows.append((what, left, f"{resumed or 'started anew'}; {outcome}", fine))
        print(f"{'ok  ' if fine else 'FAIL'} {what}: left {left}; {self.rows[-1][2]}", flush=True)
        if not fine:
            print(said[-3000:])

    def killed(self, what: str, fault: str, parallel: str, expected: int, back: list[str], *more: str) -> None:
        """A process is killed, the run dies with it, and another goes on from the checkpoint of step ``expected``,
        or from the beginning if that is 0."""
        out = fault.replace("@", "-") + parallel
        code, _ = self.run([*TORCHRUN, __file__], out, "--parallel", parallel, fault=fault)
        assert code != 0, f"{what}: nobody was killed"
        left = self.left(out)
        gone_on = self.run(back, out, *more, "--resume")
        self.judge(what, left, out, f"going on from step-{expected:08d}" if expected else "", gone_on)


def drills(d: Drills) -> None:
    two = [*TORCHRUN, __file__]
    code, said = d.run(ALONE, "reference")
    assert code == 0, said
    d.killed("DDP, process 1 killed in its forward pass; resumed on two", "forward@1", "ddp", 3, two)
    d.killed("DDP, process 0 killed before the update; resumed on one", "optimizer@0", "ddp", 6, ALONE)
    fsdp2 = ("--parallel", "fsdp2")
    d.killed("FSDP2, process 1 killed while it writes its first shards; resumed on one", "shards@1", "fsdp2", 0, ALONE)
    d.killed("FSDP2, process 1 killed while it reads them back", "digests@1", "fsdp2", 3, two, *fsdp2)
    d.killed("FSDP2, process 0 killed before the manifest; resumed with DDP", "manifest@0", "fsdp2", 3, two)
    d.killed("FSDP2, process 0 killed before the rename", "rename@0", "fsdp2", 3, two, *fsdp2)

    restarting = [*TORCHRUN, "--max-restarts=1", __file__]
    # torchrun would keep the store in which the killed processes left their addresses, and these would be called
    new_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    gone_on = d.run(restarting, "restart", *fsdp2, "--resume", fault="optimizer@1", **new_store)
    what = "FSDP2, process 1 killed before the update; torchrun --max-restarts=1 starts both again"
    d.judge(what, d.left("restart"), "restart", "going on from step-00000006", gone_on)

    for name, number, launcher in (("SIGTERM", signal.SIGTERM, ALONE), ("SIGINT", signal.SIGINT, ALONE)):
        stopped(d, f"one process gets {name}; resumed on two with FSDP2", name, number, launcher, [*two], *fsdp2)
    stopped(d, "torchrun gets SIGTERM (DDP); resumed on one", "torchrun", signal.SIGTERM, two, ALONE)

    out = "damaged"
    shutil.copytree(d.root / "reference", d.root / out)
    newest = sorted((d.root / out / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)  # the last step's: so that there is something to go on to
    newest = sorted((d.root / out / "checkpoints").iterdir())[-1]
    (path,) = newest.glob("*.distcp")
    os.truncate(path, path.stat().st_size // 2)
    code, said = d.run(two, out, "--resume")
    fine = code != 0 and said.count(f"fisheropt: {path} has ") == 1
    row = ("a shard cut in half; resumed on two", d.left(out), "refused, said once: which file, what, what to do", fine)
    d.rows.append(row)
    print(f"{'ok  ' if fine else 'FAIL'} {row[0]}: {row[2]}")
    shutil.rmtree(newest)  # what the message advises
    d.judge(
        "... its folder deleted, as advised",
        d.left(out),
        out,
        "going on from step-00000006",
        d.run(two, out, "--resume"),
    )


def stopped(d: Drills, what: str, out: str, number: int, launcher: list[str], back: list[str], *more: str) -> None:
    """A signal arrives in the middle; there is a checkpoint of the step in which it did."""
    process = d.start(launcher, out)
    metrics = d.root / out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(number)
    said = "".join(process.communicate(timeout=120))
    done = len(d.curve(out))
    assert done < STEPS, f"{what}: the run was over before the signal came"
    assert f"stopped after step {done}; go on with:" in said, said
    gone_on = d.run(back, out, *more, "--resume")
    d.judge(what, f"{done:02d} the newest", out, f"going on from step-{done:08d}", gone_on)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        d = Drills(Path(folder))
        drills(d)
    import torch

    lines = [
        "# Fault drills",
        "",
        f"`python benchmarks/fault_drills.py`, torch {torch.__version__}, gloo. FAdam, the tiny text model, {STEPS} "
        f"steps of 4 sequences, a checkpoint every {EVERY} steps. A killed process gets SIGKILL, once. Losses are "
        f"compared step by step with those of a run on one process that was left alone; {TOLERANCE:g} (relative) "
        "is what the order of float32 sums may do.",
        "",
        "| what happened | checkpoints found | what the resumed run did | as it should be |",
        "|---|---|---|---|",
        *(f"| {what} | {left} | {outcome} | {'yes' if fine else '**no**'} |" for what, left, outcome, fine in d.rows),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    return 0 if all(fine for *_, fine in d.rows) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(os.environ["DRILL_FAULT"], sys.argv[2:])
    else:
        sys.exit(main())
