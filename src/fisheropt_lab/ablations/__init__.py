"""The FAdam paper's ablation tables, and the one it does not have, as studies.

Each is a list of arms: an optimizer with one setting changed. The first arm is what the paper recommends, and the
others are held against it under the same protocol as a comparison of optimizers: the drop-in track leaves the learning
rate where the first arm has it, as the paper does; the tuned track gives every arm a learning rate of its own.
"""

from __future__ import annotations

from fisheropt_lab.ablations.ablation import Ablation, Arm
from fisheropt_lab.ablations.changes import CHANGES
from fisheropt_lab.ablations.tables import EPSILON, EPSILON2, EXPONENT, LOSS, WEIGHT_DECAY

ABLATIONS: dict[str, Ablation] = {one.name: one for one in (EXPONENT, EPSILON, EPSILON2, WEIGHT_DECAY, LOSS, CHANGES)}

__all__ = ["ABLATIONS", "Ablation", "Arm"]
