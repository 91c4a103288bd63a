"""Which of FAdam's changes to Adam does the work: each taken back alone, all others as they are."""

from __future__ import annotations

from typing import Any

import torch

from fisheropt import FAdam
from fisheropt.rules import ParamsT, Rule
from fisheropt_lab.ablations.ablation import Ablation, Arm, Losses
from fisheropt_lab.ablations.rules import VARIANTS

LABELS = {
    "momentum_first": "momentum before the metric",
    "corrected_momentum": "bias-corrected momentum",
    "no_clip": "no clip",
    "decoupled_decay": "decoupled decay",
    "constant_epsilon": "constant epsilon",
    "adam_like": "all five taken back",
}


class FAdamWith(FAdam):
    """FAdam's options and state, another rule. Eager: kernels are for the rule itself.

    Args:
        params, options: as of `fisheropt.FAdam`.
        rule: a key of `VARIANTS`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        rule: str,
        **options: Any,
    ) -> None:
        self.rule = VARIANTS[rule]
        super().__init__(params, lr, betas, **options)

    def rule_for(self, shape: torch.Size, options: Any) -> Rule:
        return self.rule


def _changes(quick: bool, losses: Losses) -> dict[str, Arm]:
    arms = {"fadam": Arm("FAdam", "fadam")}
    for name, label in LABELS.items():
        arms[name] = Arm(label, f"fadam-{name}")
        if name in ("decoupled_decay", "adam_like"):
            arms[f"{name}-0.1"] = Arm(f"{label}, lambda 0.1", f"fadam-{name}", {"weight_decay": 0.1})
    return arms | {"adam": Arm("Adam, as the paper prints it", "adam")}


CHANGES = Ablation(
    "changes",
    "Each of FAdam's changes to Adam taken back alone",
    "not there; it changes everything at once",
    "",
    _changes,
    notes=(
        "Every arm is FAdam with one line of its algorithm as Adam has it. FAdam's lambda = 1e-3 is hardly a decay "
        "where it is decoupled, so these arms also run with AdamW's 0.1.",
    ),
)
