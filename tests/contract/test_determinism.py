"""The same bits on every run, for any number of threads, and in a process that was forked."""

import multiprocessing

import pytest
import torch
from tests.cases import INFO, RULES, each_optimizer, gradients, parameter, same_bits, snapshot, train
from torch.utils.data import DataLoader

SHAPES = ((100_003,), (331, 317), (3, 40, 700))  # none divides evenly among threads


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def bits(info, backend, **options):
    params = [parameter(shape, seed=i) for i, shape in enumerate(SHAPES)]
    optimizer = info.make(params, weight_decay=0.01, backend=backend, **options)
    train(optimizer, {p: gradients(tuple(p.shape), scale=0.1, steps=2, dtype=p.dtype) for p in params})
    return snapshot(optimizer)


# With rho = 0.3 there is a power to compute, which vectorised code does otherwise than what is left over.
@pytest.mark.parametrize(
    ("info", "backend", "options"),
    [
        pytest.param(info, backend, options, id=f"{info}-{backend}-{options}")
        for info, backend in RULES
        for options in ([{}, {"rho": 0.3}] if info.fisher else [{}])
    ],
)
def test_the_bits_do_not_depend_on_the_number_of_threads(info, backend, options, threads):
    threads(1)
    reference = bits(info, backend, **options)
    for n in (1, 2, 3, 4):
        threads(n)
        assert same_bits(bits(info, backend, **options), reference), f"{n} threads"


def _bits_in_a_child(name, queue):
    queue.put([t.numpy() for t in bits(INFO[name], "eager")])


def _one_item(item):
    return item


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@each_optimizer
def test_a_process_forked_after_a_step_can_load_data(info):
    """Anything that held a thread pool or a lock over a fork would hang the DataLoader's workers."""
    p = parameter((100_003,))
    optimizer = info.make([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    loader = DataLoader(torch.arange(6.0), batch_size=2, num_workers=1, multiprocessing_context="fork", timeout=60)
    for batch in loader:
        p.grad = torch.full_like(p, batch.sum().item())
        optimizer.step()
    assert int(optimizer.state[p]["step"]) == 4


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@each_optimizer
def test_a_forked_process_takes_the_same_steps(info):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    here = bits(info, "eager")
    child = context.Process(target=_bits_in_a_child, args=(info.name, queue))
    child.start()
    there = [torch.as_tensor(array) for array in queue.get()]
    child.join()
    assert same_bits(there, here)
