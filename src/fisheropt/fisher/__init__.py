"""Fisher information of a model: estimates of its diagonal on data, and the factors that AdaFisher averages.

    estimate.py     fisher_diag, with questions.py, distributions.py, pulls.py, unit_squares.py, per_unit.py,
                    recording.py, batch_square.py, batches.py, models.py
    matrix.py       fisher_matrix: all of it, for small models; product.py: products with it, for any
    natural.py      natural_gradient ; kl.py: kl_check

    factors.py      what one call of a layer says about its Fisher information: pure functions of its input and gradient
    capture.py      hooks that show inputs and output gradients to a receiver, and the owner who removes them
    accumulate.py   a receiver: sums over calls, micro-batches and processes
    curvature.py    moving averages of the factors of every layer of a model, and the metric they give a parameter
    diagonal.py     FisherDiagonal: name -> tensor, with what has to be known of it; saved and loaded
    compare.py      how far two diagonals are apart
    noise.py        how much of a gradient is noise, and the batch size at which half of its square is
    offdiagonal.py  how much of the Fisher information a diagonal leaves out
    kron_gap.py     how far AdaFisher's product is from the diagonal it stands for
    likelihood.py   what a loss is: the negative log of a probability, of a density, or of nothing; by way of
                    labels.py, identities.py and examination.py
    ewc.py          use it: hold a model where an old task needs it
    merge.py        ... average models by what each of them knows
    saliency.py     ... and prune the weights that matter least

Nothing here knows of optimizers, but for EWC.apply_grads_ and the metric of the step it follows.
"""

from fisheropt.fisher.accumulate import FactorSums
from fisheropt.fisher.capture import Capture, Receiver
from fisheropt.fisher.compare import Agreement, FisherComparison, compare_fisher
from fisheropt.fisher.curvature import Curvature, CurvatureSummary
from fisheropt.fisher.diagonal import FisherDiagonal
from fisheropt.fisher.estimate import fisher_diag
from fisheropt.fisher.ewc import EWC
from fisheropt.fisher.factors import Layer, layer_of, minmax
from fisheropt.fisher.kl import KLCheck, kl_check
from fisheropt.fisher.kron_gap import KroneckerGap, KroneckerLayer, kron_diag_gap
from fisheropt.fisher.likelihood import LikelihoodCheck, check_likelihood
from fisheropt.fisher.matrix import fisher_matrix
from fisheropt.fisher.merge import fisher_merge
from fisheropt.fisher.natural import natural_gradient
from fisheropt.fisher.noise import Noise, NoiseSplit, noise_split
from fisheropt.fisher.offdiagonal import OffDiagonal, offdiagonal_mass
from fisheropt.fisher.product import FisherProduct
from fisheropt.fisher.saliency import fisher_saliency, prune_by_saliency

__all__ = [
    "EWC",
    "Agreement",
    "Capture",
    "Curvature",
    "CurvatureSummary",
    "FactorSums",
    "FisherComparison",
    "FisherDiagonal",
    "FisherProduct",
    "KLCheck",
    "KroneckerGap",
    "KroneckerLayer",
    "Layer",
    "LikelihoodCheck",
    "Noise",
    "NoiseSplit",
    "OffDiagonal",
    "Receiver",
    "check_likelihood",
    "compare_fisher",
    "fisher_diag",
    "fisher_matrix",
    "fisher_merge",
    "fisher_saliency",
    "kl_check",
    "kron_diag_gap",
    "layer_of",
    "minmax",
    "natural_gradient",
    "noise_split",
    "offdiagonal_mass",
    "prune_by_saliency",
]
