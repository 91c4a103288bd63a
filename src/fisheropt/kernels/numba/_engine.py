"""One thread's way through a plan, for any rule.

A rule is a NamedTuple, its *job*, with everything a step needs, and three functions registered for its class:

    gather(job, plan, chunk, again)   add up the chunk's part of the statistics; changes no tensor
    resolve(job, plan, tensor, again) the statistics of a tensor are complete: work out what `apply` needs. True if they
                                      have to be gathered again (never when ``again``)
    apply(job, plan, chunk)           update the chunk

Each is called for chunks of any tensor in any order by any thread, within the order of stages that `_plan` explains.
"""

# Compiled functions have the types that numba finds for them.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fisheropt.kernels.numba._compile import elementwise, overload
from fisheropt.kernels.numba._memory import add, put, read, relax
from fisheropt.kernels.numba._plan import AGAIN, APPLY, GATHER, WHOLE, Plan

__all__ = ["apply", "control_for", "gather", "implements", "resolve", "work"]


def gather(job: Any, plan: Plan, chunk: int, again: bool) -> None:
    """See the module."""
    raise NotImplementedError


def resolve(job: Any, plan: Plan, tensor: int, again: bool) -> bool:
    """See the module."""
    raise NotImplementedError


def apply(job: Any, plan: Plan, chunk: int) -> None:
    """See the module."""
    raise NotImplementedError


def implements(phase: Callable[..., Any], job_class: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as what ``phase`` does for jobs of a class."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def choose(job: Any, *arguments: Any) -> Callable[..., Any] | None:
            return function if getattr(job, "instance_class", None) is job_class else None

        overload(phase)(choose)
        return function

    return register


# What threads say to each other, per stage and in a cache line of its own.
_WIDTH = 8
_NEXT, _COUNT, _OPEN, _DONE = range(4)  # next item to take; items there are; may be entered; items finished


def control_for(plan: Plan) -> NDArray[np.int64]:
    """Fresh for each step: a thread that comes late for the last one finds all its items taken, and leaves."""
    control = np.zeros((plan.kind.size, _WIDTH), np.int64)
    control[:, _COUNT] = plan.items
    control[:, _OPEN] = (plan.kind == GATHER) | (plan.kind == WHOLE)
    return control


@elementwise
def work(plan, control, job):
    """Take items until none is left, and return when all of them are finished."""
    shared = control.ctypes.data
    stages = plan.kind.size
    for stage in range(stages):
        line = stage * _WIDTH
        while read(shared, line + _OPEN) == 0:
            relax()
        count = read(shared, line + _COUNT)
        while True:
            i = add(shared, line + _NEXT, 1)
            if i >= count:
                break
            _do(plan, job, stage, i)
            if add(shared, line + _DONE, 1) == count - 1:
                _close(plan, shared, job, stage)
    for stage in range(stages):
        line = stage * _WIDTH
        while read(shared, line + _DONE) < read(shared, line + _COUNT):
            relax()


@elementwise
def _do(plan, job, stage, i):
    """Item ``i`` of a stage."""
    kind = plan.kind[stage]
    item = plan.first_item[stage] + i
    if kind == APPLY:
        item = plan.first_item[stage] + plan.items[stage] - 1 - i
    chunk, last = plan.item[item], plan.item[item + 1]
    while chunk < last:
        if kind == WHOLE:
            tensor = plan.tensor[chunk]
            chunks = plan.chunks[tensor]
            for c in range(chunk, chunk + chunks):
                gather(job, plan, c, False)
            if resolve(job, plan, tensor, False):
                for c in range(chunk, chunk + chunks):
                    gather(job, plan, c, True)
                resolve(job, plan, tensor, True)
            for c in range(chunk + chunks - 1, chunk - 1, -1):
                apply(job, plan, c)
            chunk += chunks
        else:
            if kind == APPLY:
                apply(job, plan, chunk)
            else:
                gather(job, plan, chunk, kind == AGAIN)
            chunk += 1


@elementwise
def _close(plan, shared, job, stage):
    """All items of a stage are finished: see to the tensors of its wave, and open what comes next."""
    kind = plan.kind[stage]
    if kind in (APPLY, WHOLE):
        return
    first = plan.item[plan.first_item[stage]]
    last = plan.item[plan.first_item[stage] + plan.items[stage]]
    repeat = False
    for chunk in range(first, last):
        tensor = plan.tensor[chunk]
        if plan.first_chunk[tensor] == chunk:
            repeat |= resolve(job, plan, tensor, kind == AGAIN)
    line = (stage + 1) * _WIDTH
    if kind == GATHER:
        if not repeat:
            put(shared, line + _COUNT, 0)
            put(shared, line + _WIDTH + _OPEN, 1)
        put(shared, line + _OPEN, 1)
    else:
        put(shared, line + _OPEN, 1)
