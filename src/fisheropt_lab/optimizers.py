"""The contenders: one line per optimizer the lab can compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam
from fisheropt_lab.errors import LabError

Parameters = Iterable[nn.Parameter]
Build = Callable[[Parameters, float, str], Optimizer]  # parameters, lr, backend


@dataclass(frozen=True)
class Contender:
    """An optimizer as it enters a comparison: its class with the options a user gets without asking for others."""

    name: str  # on the command line
    label: str  # in tables and plots
    lr: float  # peak learning rate in the middle of the grid
    options: dict[str, Any]  # what differs from the class's own defaults
    note: str  # one line for the report: which class, and anything peculiar about its learning rate
    build: Build


def _torch(cls: type[Optimizer], **options: Any) -> Build:
    return lambda parameters, lr, backend: cls(parameters, lr=lr, **options)


def _ours(cls: type[Optimizer], **options: Any) -> Build:
    return lambda parameters, lr, backend: cls(parameters, lr=lr, backend=backend, **options)


def _contender(
    name: str, label: str, family: Callable[..., Build], cls: type[Optimizer], lr: float, note: str, **options: Any
) -> Contender:
    return Contender(name, label, lr, options, note, family(cls, **options))


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        _contender(
            "adamw", "AdamW", _torch, torch.optim.AdamW, 4e-3, "torch.optim.AdamW, the fused implementation", fused=True
        ),
        _contender("fadam", "FAdam", _ours, FAdam, 4e-3, "fisheropt.FAdam"),
        _contender("fadafactor", "FAdafactor", _ours, FAdafactor, 4e-3, "fisheropt.FAdafactor, with momentum"),
        _contender(
            "adafactor",
            "Adafactor",
            _ours,
            Adafactor,
            4e-3,
            "fisheropt.baselines.Adafactor, as the FAdam paper prints it",
        ),
        _contender("adam", "Adam", _ours, Adam, 4e-3, "fisheropt.baselines.Adam, as the FAdam paper prints it"),
        _contender(
            "naturaladam",
            "NaturalAdam",
            _ours,
            NaturalAdam,
            0.06,
            "fisheropt.baselines.NaturalAdam; bounds the L2 norm of each tensor's update, hence the larger lr",
        ),
        _contender("sgd", "SGD", _torch, torch.optim.SGD, 0.25, "torch.optim.SGD with momentum", momentum=0.9),
    )
}


def contender(name: str) -> Contender:
    """Look a name up; an unknown one is answered with the closest known one."""
    if name in CONTENDERS:
        return CONTENDERS[name]
    close = get_close_matches(name.lower(), CONTENDERS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(CONTENDERS)}"
    raise LabError(f"unknown optimizer {name!r}; {hint}")


def backends_of(optimizer: Optimizer) -> dict[str, int]:
    """The backends an optimizer picked, and for how many parameters."""
    if hasattr(optimizer, "backends"):
        return dict(Counter(optimizer.backends().values()))
    options = optimizer.param_groups[0]
    name = "torch fused" if options["fused"] else "torch"
    return {name: sum(len(group["params"]) for group in optimizer.param_groups)}


def backends_on(device: torch.device, name: str, backend: str) -> list[str]:
    """The backends an optimizer would use for a weight matrix on the device; a backend it cannot have is an error."""
    weight = nn.Parameter(torch.zeros(256, 256, device=device))
    try:
        return list(backends_of(contender(name).build([weight], contender(name).lr, backend)))
    except (ValueError, RuntimeError, ImportError) as error:
        raise LabError(f"{name}: {error}") from None


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of every tensor the optimizer keeps, step counters included."""
    tensors = (value for state in optimizer.state.values() for value in state.values())
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
