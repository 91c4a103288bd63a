"""Wall-clock time that waits for the device to finish."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Seconds on a monotonic clock, once everything queued on the device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
