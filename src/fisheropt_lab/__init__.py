"""The lab: equal-budget comparisons of fisheropt's optimizers with the ones people use today.

Entry point: the command `fisheropt` (`fisheropt_lab.cli:main`). The lab sees public names of fisheropt only.
"""

import os

# OpenMP threads that wait for one another sleep instead of spinning. As soon as the machine has anything else to do,
# spinning threads hold the very cores the others wait for, and a training step takes ten times as long. The setting is
# read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
