"""The contenders: one line per optimizer the lab can compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import AdaFisher, AdaFisherW, FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam
from fisheropt_lab.errors import LabError
from fisheropt_lab.options import known
from fisheropt_lab.record import LayerCurvature


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
    watches: bool = False  # whether it takes the model, whose layers it watches, instead of its parameters
    control: str | None = None  # who is added to every comparison this one takes part in, at lr / damping

    def build(self, model: nn.Module, lr: float, backend: str) -> Optimizer:
        """The optimizer of this model."""
        choice = {"backend": backend} if self.backends else {}
        return self.cls(model if self.watches else model.parameters(), lr=lr, **self.options, **choice)

    @property
    def period(self) -> int:
        """Steps after which the cost of a step repeats."""
        return int(self.options.get("update_every", 1))

    def control_lrs(self, lrs: tuple[float, ...]) -> tuple[float, ...]:
        """The grid of the control: lr / damping, rounded to six digits as every grid."""
        return tuple(float(f"{lr / self.options['damping']:.6g}") for lr in lrs)


AS_PRINTED = "fisheropt.baselines, as the FAdam paper prints it"

ADAFISHER_LR = 1e-2
WATCHING: dict[str, Any] = {"damping": 1e-3, "update_every": 10}
"""AdaFisher's default damping, written out because the control needs it, and factors as often as its docs advise."""

ADAFISHER_NOTE = (
    "fisheropt; lr is damping times momentum SGD's, and more as far as F exceeds its damping; factors every 10 steps, "
    "for their cost"
)
CONTROL_NOTE = (
    "torch.optim, momentum as an average, lr = AdaFisher's / damping: what AdaFisher is where its curvature changes "
    "nothing; added wherever AdaFisher takes part"
)

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
        Contender(
            "adafisher",
            "AdaFisher",
            AdaFisher,
            ADAFISHER_LR,
            ADAFISHER_NOTE,
            WATCHING,
            watches=True,
            control="sgd-control",
        ),
        Contender(
            "adafisherw",
            "AdaFisherW",
            AdaFisherW,
            ADAFISHER_LR,
            f"{ADAFISHER_NOTE}; without weight decay, its default, it is AdaFisher",
            WATCHING,
            watches=True,
            control="sgd-control",
        ),
        Contender(
            "sgd-control",
            "SGD control",
            torch.optim.SGD,
            ADAFISHER_LR / WATCHING["damping"],
            CONTROL_NOTE,
            {"momentum": 0.9, "dampening": 0.9},
            backends=False,
        ),
    )
}


def contender(name: str) -> Contender:
    """Look a name up; an unknown one is answered with the closest known one."""
    return CONTENDERS[known("optimizer", name, CONTENDERS)]


def backends_of(optimizer: Optimizer) -> dict[str, int]:
    """The backends an optimizer picked, and for how many parameters."""
    if hasattr(optimizer, "backends"):
        return dict(Counter(optimizer.backends().values()))
    options = optimizer.param_groups[0]
    name = "torch fused" if options["fused"] else "torch"
    return {name: sum(len(group["params"]) for group in optimizer.param_groups)}


def backends_on(device: torch.device, name: str, backend: str) -> list[str]:
    """The backends an optimizer would use for a weight matrix on the device; a backend it cannot have is an error."""
    layer = nn.Linear(256, 256, bias=False, device=device)
    try:
        return list(backends_of(contender(name).build(layer, contender(name).lr, backend)))
    except (ValueError, RuntimeError, ImportError) as error:
        raise LabError(f"{name}: {error}") from None


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of every tensor the optimizer keeps, step counters and factors included."""
    return _bytes_in(optimizer.state)


def _bytes_in(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes_in, value.values())) if isinstance(value, Mapping) else 0


def curvature_of(optimizer: Optimizer) -> dict[str, LayerCurvature]:
    """How far F is from its damping, by parameter name; empty for optimizers without such an F."""
    if not isinstance(optimizer, AdaFisher | AdaFisherW):
        return {}
    entries = {
        name: p.numel()
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }
    return {
        name: LayerCurvature(entries=entries[name], **summary._asdict())
        for name, summary in optimizer.curvature_summary().items()
    }
