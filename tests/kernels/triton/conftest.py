"""The kernels run on a GPU where there is one, and in Triton's interpreter where there is none (tests/conftest.py)."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["*.py"]  # no wheels for this platform


@pytest.fixture(autouse=True)
def _as_on_a_gpu():
    """Numbers beyond a range are infinite without comment: the kernels compare with it, where NumPy warns."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def _patched_once(monkeypatch):
    """Half of the interpreter's time: it prepares the language for each device function, as the kernel has already."""
    from triton.runtime.interpreter import InterpretedFunction

    call = InterpretedFunction.__call__

    def prepared(function, *args, **names):
        ours = function.fn.__module__.startswith("fisheropt")
        return function.rewrite()(*args, **names) if ours else call(function, *args, **names)

    monkeypatch.setattr(InterpretedFunction, "__call__", prepared)


@pytest.fixture(autouse=True)
def _as_strict_as_a_gpu(monkeypatch):
    """The interpreter drops arguments a kernel does not have and takes wrapped constants; a launch does not."""
    from triton.language import constexpr
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def strict(function, *args, grid, warmup, **names):
        assert names.keys() <= {*function.arg_names, "num_warps"}, f"{function.__name__}: {names.keys()}"
        assert not any(isinstance(value, constexpr) for value in (*args, *names.values())), function.__name__
        return run(function, *args, grid=grid, warmup=warmup, **names)

    monkeypatch.setattr(InterpretedFunction, "run", strict)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """A program takes a tile at a time, and the interpreter's time goes by tiles: small tensors meet all edges."""
    from fisheropt.kernels.triton import _plan

    monkeypatch.setattr(_plan, "TILING", _plan.Tiling(chunk=64, tile=32, rows=8, columns=16, warps=1))
