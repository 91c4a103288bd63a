"""Likelihoods of real-valued data and of pixels, for which the Fisher argument behind FAdam holds, or nearly.

    likelihood.py        what a likelihood offers: nll, sample, decode, bits_per_dim, and what kind it is
    pixels.py            256 bins per channel, and their loss without the logits of a whole batch
    soft_bins.py         regression by classification: two-hot and HL-Gauss
    symlog.py            the logarithm that takes both signs
    logit_laplace.py     a Laplace density of the logit of a pixel
    logistic_mixture.py  the discretized mixture of logistics of PixelCNN++

Every lower-case name is a formula, every class a likelihood. Nothing here knows of optimizers or models.
"""

from fisheropt.losses.likelihood import Likelihood
from fisheropt.losses.logistic_mixture import DiscretizedLogisticMixture, discretized_logistic_mixture
from fisheropt.losses.logit_laplace import LogitLaplace, logit_laplace
from fisheropt.losses.pixels import PixelCategorical, pixel_cross_entropy
from fisheropt.losses.soft_bins import HLGauss, TwoHot, hl_gauss, two_hot
from fisheropt.losses.symlog import symexp, symlog

__all__ = [
    "DiscretizedLogisticMixture",
    "HLGauss",
    "Likelihood",
    "LogitLaplace",
    "PixelCategorical",
    "TwoHot",
    "discretized_logistic_mixture",
    "hl_gauss",
    "logit_laplace",
    "pixel_cross_entropy",
    "symexp",
    "symlog",
    "two_hot",
]
