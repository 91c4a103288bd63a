"""State of large tensors is asked for in large pages, and is the same state."""

import mmap
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fisheropt import FAdam
from fisheropt import _pages as pages


@pytest.fixture
def advice(monkeypatch):
    given = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *call: given.append(call))
    return given


def stepped(size):
    p = torch.nn.Parameter(torch.ones(size))
    p.grad = torch.ones(size)
    optimizer = FAdam([p], backend="eager")
    optimizer.step()
    return optimizer.state[p]


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without this advice")
def test_the_advice_covers_whole_pages_of_the_tensor_and_nothing_else(advice):
    state = stepped((1 << 20) + 77)
    assert len(advice) == 2
    for (start, length, kind), x in zip(advice, (state["f"], state["m"]), strict=True):
        assert kind == mmap.MADV_HUGEPAGE
        assert start % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
        assert x.data_ptr() <= start < x.data_ptr() + mmap.PAGESIZE
        assert x.data_ptr() + x.nbytes - mmap.PAGESIZE < start + length <= x.data_ptr() + x.nbytes


def test_small_tensors_and_those_elsewhere_are_left_alone(advice):
    stepped(1000)
    pages.in_large_pages(torch.empty(1 << 22, device="meta"))
    with FakeTensorMode():
        pages.in_large_pages(torch.empty(1 << 22))
    assert not advice


def test_without_large_pages_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    pages._madvise.cache_clear()
    try:
        assert pages._madvise() is None
        assert stepped(1 << 20)["f"].isfinite().all()
    finally:
        pages._madvise.cache_clear()
