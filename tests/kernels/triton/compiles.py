"""Compiles every kernel for a GPU that need not be there, and prints what the compiler made of it.

A process of its own: where Triton interprets, it does not compile. Each line: the rule, the kernel, the bytes a thread
loads and stores at once at most, the bytes it spills, and its registers.
"""

import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fisheropt.kernels.triton._numbers import exponent
from fisheropt.kernels.triton._plan import TILING

H100 = GPUTarget("cuda", 90, 32)
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
POINTERS = {"marks": "*i32", "shares": "*fp32"}
SUMS = ("numbers", "partial", "by_row", "by_column", "whole")
TABLES = ("addresses", "sizes", "first", "owner", "table", "strip_owner", "block_owner", "matrix_owner")
COUNTS = ("tensors", "chunks", "again")
PLAN = {
    "P": "float32", "G": "float32", "ALIGNED": True, "CHUNK": TILING.chunk, "TILE": TILING.tile,
    "ROWS": TILING.rows, "COLUMNS": TILING.columns, "GRADIENT": 1, "ROW": 3, "COLUMN": 4, "B2HAT": 0,
    "ONE_MINUS_B2HAT": 1,
}  # fmt: skip
ALL = {**PLAN, "ADAPTIVE": True, "CLIP": True, "DECAY": True, "MOMENTUM": True}
SOME = {**PLAN, "P": "bfloat16", "G": "float16", "ADAPTIVE": False, "CLIP": True, "DECAY": False, "MOMENTUM": False}
VARIANTS = ({**ALL, **exponent(0.5)}, {**SOME, **exponent(0.7)})


def signature(name: str) -> str:
    if name.isupper():
        return "constexpr"
    if name in SUMS:
        return "*fp64"
    return POINTERS.get(name) or ("*i64" if name in TABLES else "i32" if name in COUNTS else "i64")


def report(rule: str) -> None:
    module = import_module(f"fisheropt.kernels.triton.{rule}")
    for kernel in vars(module).values():
        if not isinstance(kernel, triton.runtime.JITFunction) or "addresses" not in kernel.arg_names:
            continue
        for variant in VARIANTS:
            types = {name: signature(name) for name in kernel.arg_names}
            aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t.startswith("*")}
            constants = {(i,): variant[name] for i, name in enumerate(types) if name.isupper()}
            source = ASTSource(kernel, types, constants, aligned)
            made = triton.compile(source, target=H100, options={"num_warps": TILING.warps})
            widths = [
                int(n or 1) * int(bits) // 8
                for n, bits in re.findall(r"(?:ld|st)\.global\.(?:v(\d)\.)?b(\d+)", made.asm["ptx"])
            ]
            with tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
                ptx.write(made.asm["ptx"])
                ptx.flush()
                command = [PTXAS, "-v", "--gpu-name", "sm_90a", "-o", "/dev/null", ptx.name]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            registers, spilled = (re.findall(pattern, said) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill"))
            print(rule, kernel.fn.__name__, max(widths, default=0), max(map(int, spilled)), registers[0])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        report(name)
