"""What a kernel owes its surroundings: the same bits always, any layout, forks, threads, autograd, and its absence."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from tests.cases import gradients, parameter, same_bits, snapshot

from fisheropt import FAdafactor, FAdam

pytest.importorskip("numba")

SHAPES = ((), (7,), (1024,), (300, 200), (1024 * 200 + 3,), (400, 500))


def made(cls=FAdam, shapes=SHAPES, **options):
    return cls([parameter(shape, seed=i) for i, shape in enumerate(shapes)], backend="numba", **options)


@cache
def drawn(shape, seed, steps):
    return gradients(shape, scale=1.0, steps=steps, dtype=torch.float32, seed=seed)


def stepped(optimizer, steps=2, scale=1e-2):
    for t in range(steps):
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            p.grad = drawn(tuple(p.shape), i, steps)[t] * scale
        optimizer.step()
    return snapshot(optimizer)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("cls", [FAdam, FAdafactor])
def test_the_same_bits_on_every_run_and_for_every_number_of_threads(cls, threads):
    threads(1)
    expected = stepped(made(cls))
    for n in (1, 2, 3, 4):
        threads(n)
        for _ in range(2):
            assert same_bits(stepped(made(cls)), expected), n


@pytest.mark.parametrize("cls", [FAdam, FAdafactor])
def test_the_guess_about_the_epsilon_changes_no_bit(cls, threads):
    """The optimizer before was in the other regime."""
    threads(2)
    options = {"eps": 1e-6, "eps2": 0.01}
    first = [stepped(made(cls, **options), scale=scale) for scale in (1.0, 1e-8)]
    again = [stepped(made(cls, **options), scale=scale) for scale in (1e-8, 1e-8, 1.0, 1.0)]
    assert all(same_bits(again[i], first[j]) for i, j in enumerate((1, 1, 0, 0)))


def test_a_nan_in_a_gradient_is_not_hidden_and_stays_in_its_tensor():
    optimizer = made(shapes=((50,), (1024 * 200,), (60,)))
    params = optimizer.param_groups[0]["params"]
    for p in params:
        p.grad = torch.ones_like(p)
    params[0].grad[3] = torch.nan
    params[1].grad[-1] = torch.nan
    optimizer.step()
    assert params[0].isnan().all()
    assert params[1].isnan().all()
    assert params[2].isfinite().all()


def test_layouts_are_those_of_the_plain_rule():
    def trained(backend):
        base = parameter((3, 8, 5, 6)).detach()
        params = [
            base.clone().to(memory_format=torch.channels_last),
            base[0, 0].clone().t(),
            base[:, ::2].detach(),  # holes
        ]
        params = [p.requires_grad_() for p in params]
        optimizer = FAdam(params, lr=0.1, backend=backend)
        for t in range(3):
            for i, p in enumerate(params):
                grad = gradients(tuple(p.shape), scale=1.0, steps=3, dtype=p.dtype, seed=i)[t]
                p.grad = grad[:1].expand_as(p) if t == 1 else grad
            optimizer.step()
        return params

    for ours, plain in zip(trained("numba"), trained("eager"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


def test_autograd_notices_the_step():
    optimizer = made(shapes=((5,),))
    (p,) = optimizer.param_groups[0]["params"]
    y = p.square().sum()
    p.grad, version = torch.ones_like(p), p._version
    optimizer.step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_two_threads_of_a_program_may_step_at_once(threads):
    threads(2)
    expected = stepped(made())
    with ThreadPoolExecutor(4) as pool:
        assert all(same_bits(result, expected) for result in pool.map(lambda _: stepped(made()), range(8)))


def test_it_says_what_it_does_not_take():
    wide = FAdam([torch.zeros(3, dtype=torch.float64, requires_grad=True)], backend="numba")
    assert list(wide.backends().values()) == [
        "eager (numba: it takes float32, bfloat16 and float16, not torch.float64)"
    ]
    steep = FAdam([torch.zeros(3, requires_grad=True)], rho=1.5, backend="numba")
    assert list(steep.backends().values()) == ["eager (numba: rho > 1 leaves the range of float32)"]
    assert list(made(shapes=((3,),)).backends().values()) == ["numba"]


def python(script):
    """Run a script in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_may_step():
    """The threads of the parent are not there any more; neither it nor the parent may wait for them.

    In the child torch itself gets one thread: its own pool does not survive a fork.
    """
    python("""
        import os, torch
        from fisheropt import FAdam
        params = [torch.ones(300_000, requires_grad=True) for _ in range(2)]
        optimizers = [FAdam([p], backend="numba") for p in params]
        for p in params:
            p.grad = torch.linspace(-1, 1, 300_000)
        def step(i):
            torch.set_num_threads(2)
            optimizers[i].step()
            torch.set_num_threads(1)
        step(0), step(1)
        child = os.fork()
        step(0)
        if child == 0:
            step(1)
            os._exit(0 if torch.equal(*params) else 1)
        assert os.waitpid(child, 0)[1] == 0
        step(1)
        assert torch.equal(*params)
    """)


def test_data_loader_workers_do_not_mind():
    python("""
        import torch
        from torch.utils.data import DataLoader
        from fisheropt import FAdam
        if __name__ == "__main__":
            torch.set_num_threads(2)
            p = torch.ones(300_000, requires_grad=True)
            optimizer = FAdam([p], backend="numba")
            for x in DataLoader(torch.arange(8.0), batch_size=2, num_workers=2):
                p.grad = x.sum() * torch.ones(300_000)
                optimizer.step()
            assert p.isfinite().all()
    """)


def test_without_numba_there_is_one_warning_that_names_the_extra():
    _, said = python("""
        import importlib.util, warnings
        import torch
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "numba" else found(name, *rest)
        from fisheropt import FAdam
        from fisheropt.kernels import BackendUnavailableError
        for _ in range(3):
            p = torch.ones(3, requires_grad=True)
            p.grad = torch.ones(3)
            optimizer = FAdam([p])
            optimizer.step()
            assert list(optimizer.backends().values()) == ["eager"]
        try:
            FAdam([p], backend="numba")
        except BackendUnavailableError as error:
            assert "pip install 'fisheropt[cpu]'" in str(error)
        else:
            raise AssertionError
    """)
    assert said.count("fisheropt[cpu]") == 1


def test_nothing_compiles_at_import():
    python("""
        from fisheropt.kernels.numba import fadam
        from fisheropt.kernels.numba._engine import work
        assert not work.signatures
        assert not fadam.move.signatures
    """)


def test_where_nothing_can_be_written_it_compiles_every_time(tmp_path):
    python(f"""
        import pathlib, tempfile
        def refuse(*args, **kwargs):
            raise PermissionError
        tempfile.TemporaryFile = refuse
        import torch
        from fisheropt.kernels.numba import _compile
        assert _compile._FOLDER is None
        @_compile.elementwise
        def double(x):
            return 2 * x
        assert double(2) == 4, {str(tmp_path)!r}
    """)
