"""The threads: as many as torch has at the moment of the step.

numba's own threads would not do: they do not follow `torch.set_num_threads`, one of its layers ends the process when
two threads of the program step at once, and the other when a forked child steps. These are Python threads that enter
one compiled function, which releases the interpreter; what they say to each other is in `_engine`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import torch

__all__ = ["together"]

_Task = tuple[Callable[..., None], tuple[Any, ...]]


class _Helper:
    """A thread that waits for a function to enter."""

    def __init__(self, number: int) -> None:
        self.tasks: SimpleQueue[_Task] = SimpleQueue()
        Thread(target=self._serve, name=f"fisheropt-{number}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            function, arguments = self.tasks.get()
            function(*arguments)
            del function, arguments


_helpers: list[_Helper] = []
_hiring = Lock()


def _forget() -> None:
    """Threads do not survive a fork; the child hires its own when it first steps."""
    global _hiring
    _hiring = Lock()
    _helpers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def together(function: Callable[..., None], arguments: tuple[Any, ...], most: int) -> None:
    """Call ``function(*arguments)`` on this thread, and on helpers beside it that share its work.

    Args:
        function: returns when the whole work is done, no matter whether or when the helpers come.
        arguments: for all threads alike.
        most: more threads than this are of no use.
    """
    helpers = min(torch.get_num_threads(), most) - 1
    if helpers > 0:
        with _hiring:
            while len(_helpers) < helpers:
                _helpers.append(_Helper(len(_helpers) + 1))
        for helper in _helpers[:helpers]:
            helper.tasks.put((function, arguments))
    function(*arguments)
