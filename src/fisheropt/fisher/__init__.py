"""Fisher information of a model, layer by layer.

    factors.py      what one call of a layer says about its Fisher information: pure functions of its input and gradient
    capture.py      hooks that show inputs and output gradients to a receiver, and the owner who removes them
    accumulate.py   a receiver: sums over calls, micro-batches and processes
    curvature.py    moving averages of the factors of every layer of a model, and the metric they give a parameter
    diagonal.py     FisherDiagonal: name -> tensor, with what has to be known of it; saved and loaded
    compare.py      how far two diagonals are apart
    likelihood.py   what a loss is: the negative log of a probability, of a density, or of nothing; by way of
                    labels.py, identities.py and examination.py

Nothing here knows of optimizers.
"""

from fisheropt.fisher.accumulate import FactorSums
from fisheropt.fisher.capture import Capture, Receiver
from fisheropt.fisher.compare import Agreement, FisherComparison, compare_fisher
from fisheropt.fisher.curvature import Curvature, CurvatureSummary
from fisheropt.fisher.diagonal import FisherDiagonal
from fisheropt.fisher.factors import Layer, layer_of, minmax
from fisheropt.fisher.likelihood import LikelihoodCheck, check_likelihood

__all__ = [
    "Agreement",
    "Capture",
    "Curvature",
    "CurvatureSummary",
    "FactorSums",
    "FisherComparison",
    "FisherDiagonal",
    "Layer",
    "LikelihoodCheck",
    "Receiver",
    "check_likelihood",
    "compare_fisher",
    "layer_of",
    "minmax",
]
