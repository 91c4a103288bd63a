"""The contenders: one line per optimizer the lab can compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam
from fisheropt_lab.errors import LabError


@dataclass(frozen=True)
class Contender:
    """An optimizer as it enters a comparison: its class with the options a user gets without asking for others."""

    name: str  # on the command line
    label: str  # in tables and plots
    cls: Callable[..., Optimizer]
    lr: float  # peak learning rate in the middle of the grid
    note: str  # for the report: where it comes from, and anything peculiar about its learning rate
    options: dict[str, Any] = field(default_factory=dict)  # what differs from the defaults of the class
    backends: bool = True  # whether it can be told which backend to use: fisheropt's can

    def build(self, parameters: Iterable[nn.Parameter], lr: float, backend: str) -> Optimizer:
        """The optimizer of these parameters."""
        choice = {"backend": backend} if self.backends else {}
        return self.cls(parameters, lr=lr, **self.options, **choice)


AS_PRINTED = "fisheropt.baselines, as the FAdam paper prints it"

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("adamw", "AdamW", torch.optim.AdamW, 4e-3, "torch.optim, fused", {"fused": True}, backends=False),
        Contender("fadam", "FAdam", FAdam, 4e-3, "fisheropt"),
        Contender("fadafactor", "FAdafactor", FAdafactor, 4e-3, "fisheropt, with momentum"),
        Contender("adafactor", "Adafactor", Adafactor, 4e-3, AS_PRINTED),
        Contender("adam", "Adam", Adam, 4e-3, AS_PRINTED),
        Contender("naturaladam", "NaturalAdam", NaturalAdam, 0.06, "fisheropt.baselines; lr bounds an L2 norm"),
        Contender("sgd", "SGD", torch.optim.SGD, 0.25, "torch.optim, momentum", {"momentum": 0.9}, backends=False),
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
