"""SIGTERM and Ctrl-C as a wish: the step in progress is finished and a checkpoint written before the process ends."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what schedulers and torchrun send before they kill


class StopWish:
    """Listens while it is entered. A second Ctrl-C does not wait for the checkpoint, if the process is alone: one that
    torchrun started gets a single Ctrl-C twice, from the terminal and from torchrun, which also sees to its end."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.signal = 0  # the signal that came, or 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.alone and number == self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
