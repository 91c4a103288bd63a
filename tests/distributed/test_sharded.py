"""Sharding does not change the result: DDP, FSDP2, HSDP, tensor parallel and both, on two and four processes."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.distributed.checks import CHECKS

TOLERANCE = 1e-10  # relative to how far a tensor moved, in float64; the order of sums differs


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"{size} processes")
def results(request, tmp_path_factory):
    """All checks in one group of processes: starting them costs more than the checks."""
    size = request.param
    address = tmp_path_factory.mktemp("rendezvous") / "store"
    command = [sys.executable, "-m", "tests.distributed.checks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(address)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=300) for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors[-4000:]
    return dict(line.split() for line in outputs[0][0].splitlines() if line.split()[0] in CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_sharding_does_not_change_the_result(results, name):
    assert float(results[name]) <= TOLERANCE
