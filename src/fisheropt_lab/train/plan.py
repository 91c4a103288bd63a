"""What a training run is, as data, in two parts: what decides its loss curve, and how it is carried out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Parallel = Literal["none", "ddp", "fsdp2"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Plan:
    """What decides the loss curve. A run can be resumed under the same plan only, on any number of processes."""

    task: str
    settings: dict[str, Any]  # the task's own part: model size, global batch, data
    data: dict[str, Any]  # what the task says identifies its data
    optimizer: str
    lr: float  # peak
    steps: int
    warmup: int  # steps
    eval_every: int  # steps
    seed: int
    grad_clip: float  # bound on the global L2 norm of the gradient
    precision: Precision  # of forward and backward; weights and their update stay in float32

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """What another plan, as JSON, has otherwise: a phrase each."""
        mine = self.to_json()
        return [
            f"{_words(key)} was {saved.get(key)!r}, now {mine.get(key)!r}"
            for key in dict.fromkeys([*mine, *saved])
            if mine.get(key) != saved.get(key)
        ]


@dataclass(frozen=True)
class Execution:
    """What does not decide the loss curve (but its last digits, through the order of sums)."""

    parallel: Parallel
    accumulate: int  # micro-batches per process and step
    checkpoint_every: int  # steps
    keep: int  # complete checkpoints
    backend: str  # of fisheropt's optimizers
    threads: int  # per process
    monitor: int  # steps between the lines of monitor.jsonl, 0: there is none

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def _words(key: str) -> str:
    return key.replace("_", " ")
