"""The contenders: one line per optimizer the lab can compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fisheropt import AdaFisher, AdaFisherW, FAdafactor, FAdam
from fisheropt.baselines import Adafactor, Adam, NaturalAdam
from fisheropt_lab.ablations.changes import LABELS, FAdamWith
from fisheropt_lab.errors import LabError
from fisheropt_lab.muon import MuonWithAdamW
from fisheropt_lab.options import known
from fisheropt_lab.record import LayerCurvature
from fisheropt_lab.spec import rounded

Knob = tuple[str, tuple[float, ...]]
"""An option that tuning may change, and the values it tries besides the optimizer's own."""

BETA2: Knob = ("beta2", (0.99, 0.95))
MOMENTUM: Knob = ("momentum", (0.95, 0.8))
STEPS = "the root mean square of a step"  # an lr of Adam's kind: it says how far a weight moves
DECOUPLED: Knob = ("weight_decay", (0.1, 0.0))
IN_METRIC: Knob = ("weight_decay", (1e-2, 0.0))
COUPLED: Knob = ("weight_decay", (1e-3, 1e-4))


@dataclass(frozen=True)
class Contender:
    """An optimizer as it enters a comparison: its class with the options a user gets without asking for others."""

    name: str  # on the command line
    label: str  # in tables and plots
    cls: Callable[..., Any]
    lr: float  # peak learning rate in the middle of the grid
    note: str  # for the report: where it comes from, and anything peculiar about its learning rate
    options: dict[str, Any] = field(default_factory=dict)  # what differs from the defaults of the class
    backends: bool = True  # whether it can be told which backend to use: fisheropt's can
    watches: bool = False  # whether it takes the model, whose layers it watches, instead of its parameters
    control: str | None = None  # who is added to every comparison this one takes part in, at lr / damping
    lr_unit: str = STEPS  # optimizers with the same one can take each other's learning rate
    decay_unit: str = "decoupled"  # optimizers with the same one can take each other's weight decay
    decays: Knob = DECOUPLED  # tuned second
    third: Knob = BETA2  # tuned last
    variant_of: str | None = None  # whose learning rates it starts from, if it exists for an ablation only

    def build(self, model: nn.Module, lr: float, backend: str, options: Mapping[str, Any] | None = None) -> Optimizer:
        """The optimizer of this model. `options` replace its own; `beta2` stands for the second of `betas`."""
        given = self.options | dict(options or {})
        if "beta2" in given:
            betas = given.get("betas") or signature(self.cls).parameters["betas"].default
            given["betas"] = (betas[0], given.pop("beta2"))
        choice = {"backend": backend} if self.backends else {}
        made: Optimizer = self.cls(model if self.watches else model.parameters(), lr=lr, **given, **choice)
        return made

    @property
    def period(self) -> int:
        """Steps after which the cost of a step repeats."""
        return int(self.options.get("update_every", 1))

    def control_lr(self, lr: float) -> float:
        """The control's learning rate where this optimizer has `lr`: lr / damping (SPEC D14)."""
        return rounded(lr / self.options["damping"])


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
TORCH_ADAFACTOR_NOTE = "torch.optim; no momentum; lr is relative to the root mean square of a weight tensor"

_OF_TORCH: dict[str, Any] = {"backends": False}
_GRADIENT: dict[str, Any] = {"lr_unit": "a multiple of the gradient", "decay_unit": "coupled", "decays": COUPLED}
_METRIC: dict[str, Any] = {"decay_unit": "in the Fisher metric", "decays": IN_METRIC}
_WATCHES: dict[str, Any] = {
    "watches": True,
    "control": "sgd-control",
    "lr_unit": "a multiple of the gradient over F",
    "third": ("beta", (0.95, 0.8)),
}

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("adamw", "AdamW", torch.optim.AdamW, 4e-3, "torch.optim, fused", {"fused": True}, **_OF_TORCH),
        Contender("fadam", "FAdam", FAdam, 4e-3, "fisheropt", **_METRIC),
        Contender("fadafactor", "FAdafactor", FAdafactor, 4e-3, "fisheropt, with momentum", **_METRIC),
        Contender(
            "adafactor",
            "Adafactor",
            Adafactor,
            4e-3,
            f"{AS_PRINTED}; its weight decay is not scaled by the learning rate",
            decay_unit="of a weight, per step",
            decays=("weight_decay", (1e-4, 1e-5)),
        ),
        Contender("adam", "Adam", Adam, 4e-3, AS_PRINTED, decays=("weight_decay", (0.1, 0.01))),
        Contender(
            "naturaladam",
            "NaturalAdam",
            NaturalAdam,
            0.06,
            "fisheropt.baselines; lr bounds an L2 norm",
            lr_unit="the L2 norm of a step",
            decay_unit="in the Fisher metric, unclipped",
            decays=("weight_decay", (1e-2, 1e-3)),
        ),
        Contender(
            "sgd",
            "SGD",
            torch.optim.SGD,
            0.25,
            "torch.optim, momentum",
            {"momentum": 0.9},
            third=MOMENTUM,
            **_OF_TORCH,
            **_GRADIENT,
        ),
        Contender(
            "adafactor-torch",
            "Adafactor (torch)",
            torch.optim.Adafactor,
            0.08,
            TORCH_ADAFACTOR_NOTE,
            lr_unit="relative to the weights",
            decays=("weight_decay", (0.1, 0.01)),
            third=("beta2_decay", (-0.5, -1.0)),
            **_OF_TORCH,
        ),
        Contender(
            "adafisher",
            "AdaFisher",
            AdaFisher,
            ADAFISHER_LR,
            ADAFISHER_NOTE,
            WATCHING,
            decay_unit="coupled",
            decays=COUPLED,
            **_WATCHES,
        ),
        Contender(
            "adafisherw",
            "AdaFisherW",
            AdaFisherW,
            ADAFISHER_LR,
            f"{ADAFISHER_NOTE}; without weight decay, its default, it is AdaFisher",
            WATCHING,
            decays=("weight_decay", (0.1, 0.01)),
            **_WATCHES,
        ),
        Contender(
            "sgd-control",
            "SGD control",
            torch.optim.SGD,
            ADAFISHER_LR / WATCHING["damping"],
            CONTROL_NOTE,
            {"momentum": 0.9, "dampening": 0.9},
            third=MOMENTUM,
            **_OF_TORCH,
            **_GRADIENT,
        ),
    )
}

if hasattr(torch.optim, "Muon"):  # torch 2.9 and later
    CONTENDERS["muon"] = Contender(
        "muon",
        "Muon",
        MuonWithAdamW,
        4e-3,
        "torch.optim, hidden matrices by Muon scaled to AdamW's step, everything else by AdamW",
        {"fused": True},
        watches=True,
        decays=("weight_decay", (0.01, 0.0)),
        third=("momentum", (0.9, 0.98)),
        **_OF_TORCH,
    )


VARIANTS: dict[str, Contender] = {
    f"fadam-{rule}": Contender(
        f"fadam-{rule}", label, FAdamWith, 4e-3, f"FAdam, {label}", {"rule": rule}, variant_of="fadam", **_METRIC
    )
    for rule, label in LABELS.items()
}
"""FAdam with a change taken back, for `ablate changes`; they can be compared like any other."""


def contender(name: str) -> Contender:
    """Look a name up; an unknown one is answered with the closest known one."""
    return VARIANTS[name] if name in VARIANTS else CONTENDERS[known("optimizer", name, CONTENDERS)]


def backends_of(optimizer: Optimizer) -> dict[str, int]:
    """The backends an optimizer picked, and for how many parameters."""
    if hasattr(optimizer, "backends"):
        return dict(Counter(optimizer.backends().values()))
    options = optimizer.param_groups[0]
    name = "torch fused" if options.get("fused") else "torch"
    return {name: sum(len(group["params"]) for group in optimizer.param_groups)}


def backends_on(device: torch.device, name: str, backend: str) -> list[str]:
    """The backends an optimizer would use for a weight matrix on the device; a backend it cannot have is an error."""
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False, device=device) for _ in range(2)))
    try:
        return list(backends_of(contender(name).build(model, contender(name).lr, backend)))
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
