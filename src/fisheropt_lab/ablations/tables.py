"""Tables 2 to 6 of arXiv:2405.12807, and the contrast of losses of its Figure 1c."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fisheropt_lab.ablations.ablation import Ablation, Arm, Losses
from fisheropt_lab.errors import LabError

LEAST_EPS = 1e-30
QUICK_EPS, ALL_EPS = (1e-8, 1e-15, LEAST_EPS), (1e-8, 1e-10, 1e-12, 1e-15, 1e-20, LEAST_EPS)
QUICK_DECAYS, ALL_DECAYS = (0.0, 1e-2, 1e-4), (0.0, 1e-2, 1e-3, 1e-4, 1e-5)
NONE = 1e-6  # where lambda = 0 stands on a logarithmic axis


def _arm(name: str, label: str, optimizer: str, line: str, x: float | None, **options: Any) -> dict[str, Arm]:
    return {name: Arm(label, optimizer, options, line=line, x=x)}


def _families(quick: bool) -> Mapping[str, str]:
    return {"fadam": "FAdam"} if quick else {"fadam": "FAdam", "fadafactor": "FAdafactor"}


def _references(quick: bool) -> dict[str, Arm]:
    """What the ablated optimizer is an alternative to, unchanged."""
    adam = {"adam": Arm("Adam", "adam", line="Adam")}
    return adam if quick else adam | {"adafactor": Arm("Adafactor", "adafactor", line="Adafactor")}


def _exponent(quick: bool, losses: Losses) -> dict[str, Arm]:
    values = (0.5, 0.3, 0.4, 0.6, 0.8, 1.0) if quick else (0.5, 0.3, 0.4, 0.45, 0.55, 0.6, 0.7, 0.8, 1.0)
    arms: dict[str, Arm] = {}
    for optimizer, label in _families(quick).items():
        for rho in values:
            arms |= _arm(f"{optimizer}-rho{rho:g}", f"{label}, rho {rho:g}", optimizer, label, rho, rho=rho)
    return arms | _references(quick)


def _epsilon(quick: bool, losses: Losses) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    values = QUICK_EPS if quick else ALL_EPS
    for optimizer, label in _families(quick).items():
        arms[f"{optimizer}-adaptive"] = Arm(f"{label}, adaptive", optimizer, {}, line=f"{label}, adaptive")
        for eps in values:
            name = f"{optimizer}-eps{eps:g}"
            arms |= _arm(name, f"{label}, eps {eps:g}", optimizer, f"{label}, constant", eps, eps=eps, eps2=None)
    for eps in values:
        arms |= _arm(f"adam-eps{eps:g}", f"Adam, eps {eps:g}", "adam", "Adam", eps, eps=eps)
    return arms


def _epsilon2(quick: bool, losses: Losses) -> dict[str, Arm]:
    values = (1e-2, 1e-1, 1e-4, 1e-8) if quick else (1e-2, 1e-1, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
    arms: dict[str, Arm] = {}
    for optimizer, label in _families(quick).items():
        for eps2 in values:
            # eps bounds the epsilon from above: with the default 1e-8 none of these values would be felt
            options = {"eps2": eps2, "eps": 1.0}
            name = f"{optimizer}-eps2-{eps2:g}"
            arms |= _arm(name, f"{label}, eps2 {eps2:g}", optimizer, label, eps2, **options)
        arms[f"{optimizer}-default"] = Arm(f"{label}, default", optimizer, {}, line=f"{label}, default")
    return arms


def _weight_decay(quick: bool, losses: Losses) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    values = QUICK_DECAYS if quick else ALL_DECAYS
    for optimizer, label in _families(quick).items():
        for decay in (1e-3, *(value for value in values if value != 1e-3)):
            arms |= _decay(optimizer, label, decay)
    for decay in (*values, 0.1):
        arms |= _decay("adam", "Adam", decay)
    if not quick:
        for decay in values:
            arms |= _decay("adafactor", "Adafactor", decay)
    return arms


def _decay(optimizer: str, label: str, decay: float) -> dict[str, Arm]:
    name, shown = f"{optimizer}-lambda{decay:g}", f"{label}, lambda {decay:g}"
    return _arm(name, shown, optimizer, label, decay or NONE, weight_decay=decay)


def _loss(quick: bool, losses: Losses) -> dict[str, Arm]:
    if len(losses) < 2:
        raise LabError("the task has one loss only")
    optimizers = {"fadam": "FAdam", "adam": "Adam"}
    return {
        f"{optimizer}-{name}": Arm(f"{label}, {name}", optimizer, settings=settings, line=label)
        for optimizer, label in optimizers.items()
        for name, settings in losses.items()
    }


PAPER = "arXiv:2405.12807"
EXPONENT = Ablation(
    "exponent",
    "The exponent of the metric",
    f"{PAPER}, Table 2",
    "rho: the metric is f^rho",
    _exponent,
    logarithmic=False,
)
EPSILON = Ablation(
    "epsilon",
    "An epsilon that adapts, against constant ones",
    f"{PAPER}, Table 3",
    "constant epsilon",
    _epsilon,
)
EPSILON2 = Ablation(
    "epsilon2",
    "How large the adaptive epsilon is, relative to the gradient",
    f"{PAPER}, Table 4",
    "eps2: the epsilon is eps2 rms(g)",
    _epsilon2,
    notes=(
        "The adaptive epsilon is min(eps, eps2 rms(g)). With the default eps = 1e-8 the bound is what counts wherever "
        "rms(g) > 1e-6, so the arms raise it to 1: only then is eps2 what is varied. “default” is eps2 = 0.01 under "
        "the default bound.",
    ),
)
WEIGHT_DECAY = Ablation(
    "weight-decay",
    "Weight decay",
    f"{PAPER}, Tables 5 and 6",
    f"lambda ({NONE:g} stands for 0)",
    _weight_decay,
    notes=(
        "The same lambda is not the same decay: FAdam's is measured in the Fisher metric and clipped, Adam's is of the "
        "weight and scaled by the learning rate, the paper's Adafactor's is of the weight and not scaled. Columns of "
        "different optimizers are read each by itself.",
    ),
)
LOSS = Ablation(
    "loss",
    "A discrete likelihood, against a continuous one",
    f"{PAPER}, Figure 1c",
    "",
    _loss,
    losses=True,
    notes=("Losses cannot be compared with one another: the metric of the test split judges.",),
)
