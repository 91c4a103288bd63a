"""To write a rule of one's own: what the optimizers of this library are made of.

A rule is a function that changes one tensor and its state in place; a `Rule` names the function and declares the
state; a class that derives from `RuleOptimizer` names the options, with their defaults, and hands out the rule. The
loop over parameters, checkpoints, dtypes, low-precision state and sharding come with the class::

    def signed(p, g, step, m, *, lr, betas):
        m.mul_(betas[0]).add_(g, alpha=1 - betas[0])
        p.sub_(m.sign().mul_(lr))

    class Signed(RuleOptimizer):
        def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), *, maximize=False, backend="auto", state_dtype=None,
                     stochastic_rounding=False, seed=0):
            super().__init__(params, options_given(locals()))

        def rule_for(self, shape, options):
            return Rule(signed, slots=(Slot("m", "average of the gradient", signed=True),))

A rule sees tensors it can take as they are: real, float32 or float64, flat and contiguous. `step` is a 0-d tensor that
counts from 1, and nothing in a rule may read a value back to the host. Whole-tensor statistics come from the functions
below, which also know how to take them over the shards of a tensor.

Options are checked by name: those of this library's optimizers are known, others are refused.
"""

from __future__ import annotations

from fisheropt._math import (
    bias_correction,
    clip_by_norm_,
    clip_by_rms_,
    debiased,
    outer_fisher,
    power,
    quotient,
    rms,
    row_and_column_sums,
    square,
)
from fisheropt._optimizer import ParamsT, RuleOptimizer, options_given
from fisheropt._state import Options, Rule, Slot, needs_momentum

__all__ = [
    "Options",
    "ParamsT",
    "Rule",
    "RuleOptimizer",
    "Slot",
    "bias_correction",
    "clip_by_norm_",
    "clip_by_rms_",
    "debiased",
    "needs_momentum",
    "options_given",
    "outer_fisher",
    "power",
    "quotient",
    "rms",
    "row_and_column_sums",
    "square",
]
