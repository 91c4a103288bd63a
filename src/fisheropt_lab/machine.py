"""What a result depends on besides the spec: versions, processor, device, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fisheropt_lab


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Plain JSON values for results.json."""
    return {"versions": versions(), "hardware": hardware(device, threads), "git_commit": git_commit()}


def versions() -> dict[str, str]:
    """A resumed run insists on these, because other versions may round differently."""
    packages = {name: version(name) for name in ("torch", "fisheropt", "numpy")}
    return {"python": platform.python_version(), **packages}


def hardware(device: torch.device, threads: int) -> dict[str, Any]:
    """The machine as far as it explains a step time."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": threads,
        "waiting_threads": os.environ.get("OMP_WAIT_POLICY", "default").lower(),
        "device": device_name(device),
        "system": platform.platform(terse=True),
    }


def usable_cores() -> int:
    """Processors this process may run on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def cpu_model() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def device_name(device: torch.device) -> str:
    """`cpu`, or the accelerator's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def git_commit() -> str | None:
    """The commit of this code, `-dirty` if tracked files differ from it; None where it was installed without git."""
    here = Path(fisheropt_lab.__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not some other repository that a venv happens to lie in
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return None
