"""Executors on this machine: one training at a time in this process, or a process per core."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from queue import Empty
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any, Self

from fisheropt_lab.sweeps.job import Job, Result, Told, run_job

TELL_EVERY = 0.2  # seconds between two messages of a training about its progress
LOOK_EVERY = 0.2  # seconds


class InTurn:
    """One training at a time, here: for accelerators, and for models that want every core."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job], told: Told) -> Iterator[Result]:
        for job in jobs:
            yield run_job(job, told)


class Processes:
    """A process per core, one torch thread each: short trainings scale with processes, not with threads.

    The processes are started fresh, not forked, and stay for the whole sweep. They leave Ctrl-C to this process, which
    tells them to stop; a training notices at its next step.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Self:
        context = get_context("spawn")
        self.messages = context.Queue()
        self.stop = context.Event()
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # read by the new processes when they load torch
        self.pool = ProcessPoolExecutor(self.count, context, _begin, (self.messages, self.stop))
        self._restore_threads = before
        with _without_interrupts():  # new processes inherit this, also for the seconds in which they load torch
            self.pool.submit(_begun)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop.set()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.messages.close()
        if self._restore_threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = self._restore_threads

    def run(self, jobs: Sequence[Job], told: Told) -> Iterator[Result]:
        waiting: set[Future[Result]] = {self.pool.submit(_work, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
            self._pass_on(told)
            for future in done:
                yield future.result()

    def _pass_on(self, told: Told) -> None:
        while True:
            try:
                told(*self.messages.get_nowait())
            except Empty:
                return


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C for a moment; only the main thread may, and only it is interrupted."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begun() -> None:
    """The first thing a process does: all of them are started for it."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The sweep was interrupted."""


_messages: Any = None  # of this worker process
_stop: Any = None


def _begin(messages: Any, stop: Any) -> None:
    """In a new process: remember how to talk to the one that started it, and leave Ctrl-C to that one."""
    global _messages, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _messages, _stop = messages, stop


def _work(job: Job) -> Result:
    last = 0.0

    def told(trial: str, done: int, loss: float) -> None:
        nonlocal last
        if _stop.is_set():
            raise Stopped
        now = time.monotonic()
        if now - last > TELL_EVERY:
            last = now
            _messages.put((trial, done, loss))

    return run_job(job, told)
