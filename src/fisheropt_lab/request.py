"""From what the user typed to a spec, with one clear line for everything that cannot be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from fisheropt_lab.ablations import ABLATIONS, Ablation
from fisheropt_lab.errors import LabError
from fisheropt_lab.machine import usable_cores
from fisheropt_lab.optimizers import CONTENDERS, backends_on, contender
from fisheropt_lab.options import known, positive
from fisheropt_lab.spec import PRESETS, Entry, Spec, grid, multipliers, settings
from fisheropt_lab.tasks import TASKS, Asked, Setup, Task, TaskKind

WARMUP_SHARE = 0.1  # of the steps
GRAD_CLIP = 1.0
TUNING_SEED = 0  # the reported ones follow
TUNED = ("lr", "lr,weight_decay,beta2")


@dataclass(frozen=True)
class Request:
    """The options of a study, as typed; None is "not given"."""

    task: str = "text"
    study: str = "compare"
    quick: bool = False
    optimizers: str | None = None
    size: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    lrs: str | None = None
    tune: str | None = None
    seeds: int | None = None
    data: Path | None = None
    tokenizer: Path | None = None
    set: tuple[str, ...] = field(default=())
    device: str = "auto"
    threads: int | None = None
    backend: str = "auto"

    @property
    def preset(self) -> str:
        return "quick" if self.quick else "default"

    @property
    def name(self) -> str:
        """Of the run folder, unless the user names one."""
        return "-".join((self.task, *([] if self.study == "compare" else [self.study]), self.preset))


def prepare(request: Request) -> tuple[Task, Spec]:
    """Check the request, load the data, and say what exactly will be done."""
    preset = PRESETS[request.preset]
    kind = TASKS[known("task", request.task, TASKS)]
    ablation = None if request.study == "compare" else ABLATIONS[known("ablation", request.study, ABLATIONS)]
    entries = _compared(request, kind, preset.grid_points) if ablation is None else _ablated(request, kind, ablation)
    setup = kind.setup(asked(request, kind))
    steps = positive("--steps", request.steps, _steps(setup, request, ablation))
    seeds = positive("--seeds", request.seeds, preset.seeds)
    threads = positive("--threads", request.threads, 1)
    device = choose_device(request.device)
    for name in {entry.optimizer for entry in entries.values()}:
        backends_on(device, name, request.backend)
    task = kind.load(setup.settings)
    tune = known("--tune", request.tune or (TUNED[1] if ablation is None else TUNED[0]), TUNED)
    spec = Spec(
        study=request.study,
        task=request.task,
        preset=request.preset,
        settings=setup.settings,
        data=task.describe_data(),
        entries=entries,
        most_lrs=preset.most_lrs if request.lrs is None else max(len(entry.lrs) for entry in entries.values()),
        knob_values=0 if tune == TUNED[0] else preset.knob_values,
        steps=steps,
        warmup=max(1, round(WARMUP_SHARE * steps)),
        eval_every=max(1, steps // preset.evaluations),
        tuning_seed=TUNING_SEED,
        seeds=tuple(range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds)),
        grad_clip=GRAD_CLIP,
        backend=request.backend,
        device=device.type,
        threads=threads,
        judge=kind.metrics[0].name if ablation is not None and ablation.losses else "",
        notes=() if ablation is None else ablation.notes,
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


def choose_jobs(jobs: int | None, spec: Spec) -> int:
    """How many trainings at a time: one per core, or one on an accelerator."""
    return positive("--jobs", jobs, max(1, usable_cores() // spec.threads) if spec.device == "cpu" else 1)


def asked(request: Request, kind: TaskKind) -> Asked:
    """The task's own options. One that the task does not have is refused, rather than quietly ignored."""
    pairs = {}
    for word in request.set:
        name, equals, value = word.partition("=")
        if not equals:
            raise LabError(f"--set takes NAME=VALUE, not {word!r}")
        if name not in kind.options:
            raise LabError(f"--set {name} does not apply to {request.task}")
        pairs[name] = value
    found = Asked(request.size, request.batch_size, request.seq_len, request.data, request.tokenizer, pairs)
    if request.quick:
        found = replace(found, **{name: value for name, value in kind.quick.items() if getattr(found, name) is None})
    for option, value in asdict(found).items():
        if option != "set" and value is not None and option not in kind.options:
            raise LabError(f"--{option.replace('_', '-')} does not apply to {request.task}")
    return found


def _steps(setup: Setup, request: Request, ablation: Ablation | None) -> int:
    share = PRESETS[request.preset].step_fraction
    return max(1, round(setup.steps * share * (1.0 if ablation is None else ablation.step_share)))


def _compared(request: Request, kind: TaskKind, points: int) -> dict[str, Entry]:
    """An entry per optimizer, and those they must not be shown without."""
    names = _optimizers(kind.optimizers if request.optimizers is None else request.optimizers)
    lrs = _with_controls(_lrs(request.lrs, names, kind, points))
    return {name: Entry(contender(name).label, name, lrs=tuple(sorted(grid))) for name, grid in lrs.items()}


def _ablated(request: Request, kind: TaskKind, ablation: Ablation) -> dict[str, Entry]:
    """An entry per value of what is ablated."""
    if request.optimizers is not None:
        raise LabError("--optimizers does not apply to ablate: which they are follows from what is ablated")
    if ablation.losses and not kind.losses:
        having = ", ".join(name for name, one in TASKS.items() if one.losses)
        raise LabError(f"{request.task} has one loss only; tasks with a choice of losses: {having}")
    arms = ablation.arms(request.quick, kind.losses)
    names = list(dict.fromkeys(arm.optimizer for arm in arms.values()))
    lrs = _lrs(request.lrs, names, kind, ablation.grid_points)
    return {
        key: Entry(arm.label, arm.optimizer, settings(arm.options), settings(arm.settings), tuple(lrs[arm.optimizer]))
        for key, arm in arms.items()
    }


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
    centres = {name: kind.lrs.get(contender(name).variant_of or name, contender(name).lr) for name in names}
    if text is None:
        return {name: grid(centre, multipliers(points)) for name, centre in centres.items()}
    words = [word.strip() for word in text.split(",")]
    relative = all(word.startswith("x") for word in words)
    values = tuple(_lr(word.removeprefix("x") if relative else word) for word in words)
    if len(set(values)) < len(values):
        raise LabError(f"--lrs names a value twice: {text}")
    return {name: grid(centre, values) if relative else tuple(sorted(values)) for name, centre in centres.items()}


def _with_controls(lrs: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Add the controls of those that take part, each with the grid that its owner's has at its damping (SPEC D14)."""
    owners = [contender(name) for name in lrs if contender(name).control is not None]
    return lrs | {
        str(owner.control): tuple(owner.control_lr(lr) for lr in lrs[owner.name]) for owner in reversed(owners)
    }


def _lr(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise LabError(f"--lrs takes numbers (1e-3,2e-3) or multiples (x0.5,x1,x2), not {word!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise LabError(f"a learning rate must be positive and finite, not {word}")
    return value
