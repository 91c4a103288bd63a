"""Optimizers built on Fisher information.

`FAdam` and `FAdafactor` are drop-in `torch.optim` optimizers; `AdaFisher` and `AdaFisherW` take the model instead of
its parameters. `fisheropt.baselines` has what FAdam is compared with, `fisheropt.fisher` what AdaFisher asks of layers.
"""

from fisheropt.adafisher import AdaFisher, AdaFisherW
from fisheropt.diagnosis import Diagnosis, diagnose
from fisheropt.fadafactor import FAdafactor
from fisheropt.fadam import FAdam
from fisheropt.fisher_from_optimizer import fisher_from_optimizer
from fisheropt.from_adamw import from_adamw
from fisheropt.in_backward import StepInBackward, step_in_backward
from fisheropt.monitor import Monitor
from fisheropt.staleness import Staleness, staleness

__all__ = [
    "AdaFisher",
    "AdaFisherW",
    "Diagnosis",
    "FAdafactor",
    "FAdam",
    "Monitor",
    "Staleness",
    "StepInBackward",
    "diagnose",
    "fisher_from_optimizer",
    "from_adamw",
    "staleness",
    "step_in_backward",
]
__version__ = "0.1.0"
