"""What a Fisher diagonal is good for, shown on real data and against its controls: `fisheropt show`.

demonstration.py  what a demonstration is: one seed after another, then tables and a picture
folder.py         its run folder, and going on with what is there
digit_nets.py     the small network the digits demonstrations share, and its Fisher diagonals from every estimator
ewc.py, merge.py, prune.py, regression.py
"""

from __future__ import annotations

from fisheropt_lab.show.demonstration import Demonstration
from fisheropt_lab.show.ewc import EWC_DEMONSTRATION
from fisheropt_lab.show.merge import MERGE_DEMONSTRATION
from fisheropt_lab.show.prune import PRUNE_DEMONSTRATION
from fisheropt_lab.show.regression import REGRESSION_DEMONSTRATION

__all__ = ["DEMONSTRATIONS", "Demonstration"]

DEMONSTRATIONS = {
    demonstration.name: demonstration
    for demonstration in (EWC_DEMONSTRATION, MERGE_DEMONSTRATION, PRUNE_DEMONSTRATION, REGRESSION_DEMONSTRATION)
}
