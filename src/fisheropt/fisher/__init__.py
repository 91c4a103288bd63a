"""Fisher information of a model, layer by layer.

    factors.py      what one call of a layer says about its Fisher information: pure functions of its input and gradient
    capture.py      hooks that show inputs and output gradients to a receiver, and the owner who removes them
    accumulate.py   a receiver: sums over calls, micro-batches and processes
    curvature.py    moving averages of the factors of every layer of a model, and the metric they give a parameter
    diagonal.py     FisherDiagonal: name -> tensor, with what has to be known of it; saved and loaded

Nothing here knows of optimizers.
"""

from fisheropt.fisher.accumulate import FactorSums
from fisheropt.fisher.capture import Capture, Receiver
from fisheropt.fisher.curvature import Curvature, CurvatureSummary
from fisheropt.fisher.diagonal import FisherDiagonal
from fisheropt.fisher.factors import Layer, layer_of, minmax

__all__ = [
    "Capture",
    "Curvature",
    "CurvatureSummary",
    "FactorSums",
    "FisherDiagonal",
    "Layer",
    "Receiver",
    "layer_of",
    "minmax",
]
