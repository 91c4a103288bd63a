"""From what the user typed to a spec, with one clear line for everything that cannot be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fisheropt_lab.errors import LabError
from fisheropt_lab.machine import usable_cores
from fisheropt_lab.optimizers import CONTENDERS, backends_on, contender
from fisheropt_lab.options import known, positive
from fisheropt_lab.spec import PRESETS, Spec, grid, multipliers
from fisheropt_lab.tasks import TASKS, Asked, Task, TaskKind

WARMUP_SHARE = 0.1  # of the steps
GRAD_CLIP = 1.0


@dataclass(frozen=True)
class Request:
    """The options of `fisheropt compare`, as typed; None is "not given"."""

    task: str = "text"
    quick: bool = False
    optimizers: str | None = None
    size: str | None = None
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
    kind = TASKS[known("task", request.task, TASKS)]
    names = _optimizers(kind.optimizers if request.optimizers is None else request.optimizers)
    lrs = _with_controls(_lrs(request.lrs, names, kind, preset.grid_points))
    setup = kind.setup(_asked(request, kind))
    steps = positive("--steps", request.steps, round(setup.steps * preset.step_fraction))
    seeds = tuple(range(positive("--seeds", request.seeds, preset.seeds)))
    threads = positive("--threads", request.threads, usable_cores())
    device = choose_device(request.device)
    for name in lrs:
        backends_on(device, name, request.backend)
    task = setup.load()
    spec = Spec(
        task=request.task,
        preset=request.preset,
        settings=setup.settings,
        data=task.describe_data(),
        lrs=lrs,
        steps=steps,
        warmup=max(1, round(WARMUP_SHARE * steps)),
        eval_every=max(1, steps // preset.evaluations),
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


def _asked(request: Request, kind: TaskKind) -> Asked:
    """The task's own options. One that the task does not have is refused, rather than quietly ignored."""
    asked = Asked(request.size, request.batch_size, request.seq_len, request.data)
    for option, value in asdict(asked).items():
        if value is not None and option not in kind.options:
            raise LabError(f"--{option.replace('_', '-')} does not apply to {request.task}")
    return asked


def _optimizers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise LabError("--optimizers names no optimizer")
    for name in names:
        contender(name)
        if names.count(name) > 1:
            raise LabError(f"--optimizers names {name!r} twice")
        owners = [owner.name for owner in CONTENDERS.values() if owner.control == name]
        if owners and not set(owners) & set(names):
            raise LabError(f"{name} is a control: it needs {' or '.join(owners)} to be the control of")
    return names


def _lrs(text: str | None, names: list[str], kind: TaskKind, points: int) -> dict[str, tuple[float, ...]]:
    """Learning rates per optimizer: the preset's grid, multiples of each centre (x0.5,x1,x2), or the same values."""
    centres = {name: kind.lrs.get(name, contender(name).lr) for name in names}
    if text is None:
        return {name: grid(centre, multipliers(points)) for name, centre in centres.items()}
    words = [word.strip() for word in text.split(",")]
    relative = all(word.startswith("x") for word in words)
    values = tuple(_lr(word.removeprefix("x") if relative else word) for word in words)
    if len(set(values)) < len(values):
        raise LabError(f"--lrs names a value twice: {text}")
    return {name: grid(centre, values) if relative else values for name, centre in centres.items()}


def _with_controls(lrs: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Add the controls of those that take part, each with the grid that its owner's has at its damping (SPEC D14)."""
    owners = [contender(name) for name in lrs if contender(name).control is not None]
    return lrs | {str(owner.control): owner.control_lrs(lrs[owner.name]) for owner in reversed(owners)}


def _lr(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise LabError(f"--lrs takes numbers (1e-3,2e-3) or multiples (x0.5,x1,x2), not {word!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise LabError(f"a learning rate must be positive and finite, not {word}")
    return value
