"""Optimizers built on Fisher information.

`FAdam` and `FAdafactor` are drop-in `torch.optim` optimizers; `fisheropt.baselines` has what they are compared with.
"""

from fisheropt.fadafactor import FAdafactor
from fisheropt.fadam import FAdam
from fisheropt.from_adamw import from_adamw
from fisheropt.in_backward import StepInBackward, step_in_backward

__all__ = ["FAdafactor", "FAdam", "StepInBackward", "from_adamw", "step_in_backward"]
__version__ = "0.1.0"
