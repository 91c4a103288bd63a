"""What the kernels are launched with: plans that last, the bytes that move, and code that a GPU can run."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.cases import INFO
from tests.kernels.triton.harness import DEVICE, RULES, switched  # noqa: F401

from fisheropt.kernels.triton import _plan

each_rule = pytest.mark.parametrize("info", RULES, ids=str)


@pytest.mark.usefixtures("switched")
@each_rule
def test_a_step_of_tensors_that_stay_where_they_are_makes_no_new_plan(info):
    params = [torch.nn.Parameter(torch.ones(n, device=DEVICE)) for n in (3, 40)]
    optimizer = info.make(params, backend="triton")
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    made = _plan._plan.cache_info().misses
    for rate in (0.1, 0.2):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    assert _plan._plan.cache_info().misses == made
    params[0].grad = torch.cat([torch.ones(5, device=DEVICE)])[1:4]
    optimizer.step()
    assert _plan._plan.cache_info().misses == made + 2  # 4 bytes further: not aligned, so the two part
    assert all(p.isfinite().all() for p in params)


def test_a_graph_cannot_be_captured_before_its_plan_is_made(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    layout = _plan.Layout(torch.device("cuda"), "float32", "float32", True)
    with pytest.raises(RuntimeError, match=r"zero_grad\(set_to_none=False\)"):
        _plan._plan(layout, ((16, 32, 48, 64, 0),), (torch.Size([7]),), _plan.TILING)


STREAMING = ("_gather", "_apply")  # kernels that touch every number
LEAVES = tuple((rule, kernel) for rule in ("adam", "fadam", "fadafactor") for kernel in STREAMING)

# -- bytes per parameter -----------------------------------------------------------------------------------------------

F32, BF16 = torch.float32, torch.bfloat16
TRAFFIC = [
    # optimizer, options, dtype of p and g, bytes per parameter: read to look, read to step, written
    ("FAdam", {}, F32, 12, 16, 12),
    ("FAdam", {}, BF16, 8, 12, 10),
    ("FAdam", {"weight_decay": 0.0}, F32, 8, 16, 12),
    ("FAdam", {"betas": (0.0, 0.999)}, F32, 12, 12, 8),
    ("FAdam", {"clip": None}, F32, 4, 16, 12),
    ("FAdam", {"clip": None, "eps2": None}, F32, 0, 16, 12),
    ("FAdam", {"eps": 10.0}, F32, 4 + 12, 16, 12),  # ehat is not eps: from the second step on, another look
    ("Adam", {}, F32, 12, 16, 12),
    ("Adam", {"clip": None}, F32, 0, 16, 12),
    ("FAdafactor", {}, F32, 4 + 8, 12, 8),
    ("FAdafactor", {}, BF16, 2 + 4, 8, 6),
    ("FAdafactor", {"momentum": False, "weight_decay": 0.0}, F32, 4 + 4, 8, 4),
]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="counts what the interpreter loads and stores")
@pytest.mark.parametrize(("name", "options", "dtype", "look", "read", "written"), TRAFFIC)
@pytest.mark.usefixtures("switched")
def test_the_bytes_a_step_moves(monkeypatch, name, options, dtype, look, read, written):
    """Counted where the interpreter touches memory, in and out of the tensors of the parameter."""
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    p = torch.nn.Parameter(torch.ones(7, 10, dtype=dtype))
    optimizer = INFO[name].make([p], backend="triton", **INFO[name].small, **options)
    p.grad = torch.ones_like(p)
    optimizer.step()
    moved = Counter()

    def counting(what, original):
        def access(pointers, *arguments):
            mask = next(a.data for a in arguments if isinstance(a, TensorHandle) and a.data.dtype.kind == "b")
            for x in (p, p.grad, *optimizer.state[p].values()):
                there = (pointers.data >= x.data_ptr()) & (pointers.data < x.data_ptr() + x.nbytes)
                if x.shape == p.shape:  # the step, and row and column sums, are few
                    moved[what] += int((there & mask).sum()) * x.itemsize
            return original(pointers, *arguments)

        return access

    for what in ("load", "store"):
        access = f"create_masked_{what}"
        monkeypatch.setattr(interpreter_builder, access, counting(what, getattr(interpreter_builder, access)))
    optimizer.step()
    assert {what: count / p.numel() for what, count in moved.items()} == {"load": look + read, "store": written}


# -- the compiler ------------------------------------------------------------------------------------------------------


def test_kernels_compile_for_a_gpu_that_need_not_be_there(tmp_path):
    """What interprets need not compile. 16 bytes at once, and what is summed and stepped stays in registers."""
    script = Path(__file__).parent / "compiles.py"
    rules = sorted({rule for rule, _ in LEAVES})
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), *rules]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    made = [line.split() for line in ran.stdout.splitlines()]
    assert {line[0] for line in made} == set(rules)
    assert all(int(spilled) <= 16 for _, _, _, spilled, _ in made), ran.stdout
    for rule, kernel in LEAVES:
        widths = [int(width) for leaf, name, width, _, _ in made if (leaf, name) == (rule, kernel)]
        assert max(widths) == 16, ran.stdout
