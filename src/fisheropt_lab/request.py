"""From what the user typed to a spec, with one clear line for everything that cannot be."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

import torch

from fisheropt_lab.errors import LabError
from fisheropt_lab.machine import usable_cores
from fisheropt_lab.optimizers import backends_on, contender
from fisheropt_lab.spec import PRESETS, Spec, grid, multipliers
from fisheropt_lab.tasks import TASKS, Task
from fisheropt_lab.tasks.text.task import SCALES, TextSettings

EVALUATIONS = 15  # per trial
WARMUP_SHARE = 0.1  # of the steps
GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Request:
    """The options of `fisheropt compare`, as typed; None is "not given"."""

    task: str = "text"
    quick: bool = False
    optimizers: str = "adamw,fadam"
    size: str = "tiny"
    steps: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    lrs: str | None = None
    seeds: int | None = None
    data: Path | None = None
    device: str = "auto"
    threads: int | None = None
    backend: str = "auto"

    @property
    def preset(self) -> str:
        return "quick" if self.quick else "default"


def prepare(request: Request) -> tuple[Task, Spec]:
    """Check the request, load the data, and say what exactly will be done."""
    preset = PRESETS[request.preset]
    names = _optimizers(request.optimizers)
    lrs = _lrs(request.lrs, names, preset.grid_points)
    _known("task", request.task, TASKS)
    scale = SCALES[_known("size", request.size, SCALES)]
    settings = TextSettings(
        size=request.size,
        batch_size=_positive("--batch-size", request.batch_size, scale.batch_size),
        seq_len=_positive("--seq-len", request.seq_len, scale.seq_len),
        data=None if request.data is None else str(request.data.resolve()),
    )
    steps = _positive("--steps", request.steps, round(scale.steps * preset.step_fraction))
    seeds = tuple(range(_positive("--seeds", request.seeds, preset.seeds)))
    threads = _positive("--threads", request.threads, usable_cores())
    device = choose_device(request.device)
    for name in names:
        backends_on(device, name, request.backend)
    task = TASKS[request.task](settings)
    spec = Spec(
        task=request.task,
        preset=request.preset,
        settings=asdict(settings),
        data=task.describe_data(),
        lrs=lrs,
        steps=steps,
        warmup=max(1, round(WARMUP_SHARE * steps)),
        eval_every=max(1, steps // EVALUATIONS),
        seeds=seeds,
        grad_clip=GRAD_CLIP,
        backend=request.backend,
        device=device.type,
        threads=threads,
    )
    return task, spec


def choose_device(name: str) -> torch.device:
    """The named device, or the accelerator if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LabError(f"unknown device {name!r}; try cpu or cuda") from None
    present = torch.accelerator.current_accelerator()
    if device.type != "cpu" and (present is None or present.type != device.type):
        raise LabError(f"device {name!r} is not available on this machine")
    return device


def _optimizers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise LabError("--optimizers names no optimizer")
    for name in names:
        contender(name)
        if names.count(name) > 1:
            raise LabError(f"--optimizers names {name!r} twice")
    return names


def _lrs(text: str | None, names: list[str], points: int) -> dict[str, tuple[float, ...]]:
    """Learning rates per optimizer: the preset's grid, multiples of each centre (x0.5,x1,x2), or the same values."""
    if text is None:
        return {name: grid(contender(name).lr, multipliers(points)) for name in names}
    words = [word.strip() for word in text.split(",")]
    relative = all(word.startswith("x") for word in words)
    values = tuple(_lr(word.removeprefix("x") if relative else word) for word in words)
    if len(set(values)) < len(values):
        raise LabError(f"--lrs names a value twice: {text}")
    return {name: grid(contender(name).lr, values) if relative else values for name in names}


def _lr(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise LabError(f"--lrs takes numbers (1e-3,2e-3) or multiples (x0.5,x1,x2), not {word!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise LabError(f"a learning rate must be positive and finite, not {word}")
    return value


def _known(what: str, name: str, known: Collection[str]) -> str:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise LabError(f"unknown {what} {name!r}; {hint}")
    return name


def _positive(option: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if value < 1:
        raise LabError(f"{option} must be at least 1, not {value}")
    return value
