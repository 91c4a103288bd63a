"""Wall-clock time: that waits for the device to finish, and that people read."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import torch


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, once everything queued on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
