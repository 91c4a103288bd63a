"""Optimizers built on Fisher information.

`FAdam` and `FAdafactor` are drop-in `torch.optim` optimizers; `fisheropt.baselines` has what they are compared with.
"""

from fisheropt.fadafactor import FAdafactor
from fisheropt.fadam import FAdam

__all__ = ["FAdafactor", "FAdam"]
__version__ = "0.1.0"
