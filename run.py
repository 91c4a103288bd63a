#!/usr/bin/env python3
"""Set up this checkout and run one of its jobs. Needs Python 3.11 or later and nothing else.

    python3 run.py compare [options]   train a small language model with AdamW and FAdam, and compare them
    python3 run.py test [options]      the tests (options go to pytest)
    python3 run.py check               everything CI checks: style, types, layers, tests
    python3 run.py bench [options]     time a step of every optimizer against torch's fused AdamW
    python3 run.py fisheropt [...]     the command line of the lab

The first run makes a virtual environment in .venv and installs into it; later runs only when pyproject.toml,
constraints.txt or the Python version has changed.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "installed"
EXTRAS = "cpu,lab,speech,dev"
# The examples of a page build on one another, so one process runs them; the tests take two.
TESTS = (["-q", "docs", "README.md"], ["-n", "2", "-q", "tests", "src/fisheropt"])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(*command: str | Path) -> int:
    words = [str(word) for word in command]
    say(f"+ {shlex.join(words)}")
    return subprocess.run(words, cwd=ROOT).returncode


def fingerprint() -> str:
    parts = [sys.version.encode(), EXTRAS.encode()]
    parts += [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def set_up() -> None:
    """Make .venv what pyproject.toml asks for, if it is not."""
    if STAMP.exists() and PYTHON.exists() and STAMP.read_text() == fingerprint():
        return
    say(f"Setting up {VENV} (once; a few minutes, most of them torch). By hand it would be:")
    say(f"    {sys.executable} -m venv .venv")
    say(f"    .venv/bin/python -m pip install -c constraints.txt -e '.[{EXTRAS}]'")
    if not PYTHON.exists():
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, with_pip=True)
    # torch first and by itself: asked for by an exact version, an index that offers a CPU build hands that out
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    for packages in (pins, ["-e", f".[{EXTRAS}]"]):
        if run(*pip, *packages) != 0:
            sys.exit("run.py: the installation failed; the lines above say why. Run the same command to try again.")
    STAMP.write_text(fingerprint())


def check() -> int:
    """Every check, all of them even if one fails; the exit status says whether any did."""
    steps = [
        [BIN / "ruff", "check", "."],
        [BIN / "ruff", "format", "--check", "."],
        [BIN / "mypy"],
        [BIN / "lint-imports"],
        *([PYTHON, "-m", "pytest", *options] for options in TESTS),
    ]
    failed = [str(Path(step[0]).name) for step in steps if run(*step) != 0]
    say(f"check: {'FAILED in ' + ', '.join(failed) if failed else 'all good'}")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):
        say(f"run.py needs Python 3.11 or later, this is {sys.version.split()[0]}")
        return 2
    job, options = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if job not in ("compare", "test", "check", "bench", "fisheropt"):
        say((__doc__ or "").strip())
        return 0 if job in ("help", "-h", "--help") else 2
    set_up()
    if job == "compare":
        return run(BIN / "fisheropt", "compare", "text", *(options or ["--quick"]))
    if job == "test":
        return max(run(PYTHON, "-m", "pytest", *words) for words in ([options] if options else TESTS))
    if job == "bench":
        return run(PYTHON, "benchmarks/step.py", *options)
    if job == "fisheropt":
        return run(BIN / "fisheropt", *options)
    return check()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
