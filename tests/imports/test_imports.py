"""What `import fisheropt` adds to `import torch`, in a fresh interpreter: its own modules, and no work."""

import json
import subprocess
import sys

import pytest

REPORT = """
import json, sys, threading
{first}
before, threads = set(sys.modules), threading.active_count()
{then}
print(json.dumps({{"new": sorted(set(sys.modules) - before), "threads": threading.active_count() - threads}}))
"""


def added_by(then, first="import torch"):
    """(modules, threads) that ``then`` adds to ``first``."""
    code = REPORT.format(first=first, then=then)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    report = json.loads(done.stdout)
    return report["new"], report["threads"]


def foreign(modules, own):
    roots = {name.partition(".")[0] for name in modules}
    return roots - own - sys.stdlib_module_names


@pytest.mark.parametrize("statement", ["import fisheropt", "import fisheropt.baselines"])
def test_importing_the_library_adds_its_own_modules_and_starts_nothing(statement):
    new, threads = added_by(statement)
    assert "fisheropt" in new
    torchs = [name for name in new if name.startswith("torch")]
    assert not torchs, "what torch imports lazily, its compiler above all, is for those who use it"
    assert not foreign(new, own={"fisheropt"})
    assert threads == 0


def test_no_backend_is_imported_before_a_tensor_needs_it():
    new, _ = added_by("import fisheropt")
    assert not [name for name in new if name.startswith(("fisheropt.kernels.", "fisheropt_lab", "fisheropt_jax"))]


def test_an_eager_step_imports_nothing_from_outside():
    new, _ = added_by(
        "import fisheropt\n"
        "p = torch.zeros(3, requires_grad=True)\n"
        "optimizer = fisheropt.FAdam([p], backend='eager')\n"
        "p.grad = torch.ones(3)\n"
        "optimizer.step()",
        # the first step of any optimizer makes torch import its profiler and more
        first="import torch\n"
        "p = torch.zeros(3, requires_grad=True)\n"
        "p.grad = torch.ones(3)\n"
        "torch.optim.AdamW([p]).step()",
    )
    assert not foreign(new, own={"fisheropt", "torch"})


def test_the_public_names_are_there():
    import fisheropt

    assert {"FAdam", "FAdafactor", "from_adamw", "step_in_backward"} <= set(fisheropt.__all__)
    assert all(hasattr(fisheropt, name) for name in fisheropt.__all__)
