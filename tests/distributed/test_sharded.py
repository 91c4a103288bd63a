"""Sharding does not change the result, and costs few messages: checks in groups of two and of four processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.distributed.checks import CHECKS

TOLERANCE = 1e-10  # relative to how far a tensor moved, in float64; the order of sums differs


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All checks, in one go: starting processes costs more than the checks."""
    command = [sys.executable, "-m", "tests.distributed.checks", str(tmp_path_factory.mktemp("distributed"))]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    found: dict[tuple[str, int], dict] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            result = json.loads(line)
            key = result["check"], result["size"]
            if key not in found or result["error"]:
                found[key] = result
    assert found, done.stderr[-4000:]
    return found, done


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(name, size, id=f"{name}-{size}") for name, (_, sizes) in CHECKS.items() for size in sizes],
)
def test_sharding_does_not_change_the_result(results, name, size):
    found, done = results
    assert (name, size) in found, f"the processes ended before: {done.stderr[-4000:]}"
    assert found[name, size]["found"] <= TOLERANCE, found[name, size]["error"]


def test_the_processes_end_well(results):
    _, done = results
    assert done.returncode == 0, done.stderr[-4000:]
