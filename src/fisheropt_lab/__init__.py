"""The lab: equal-budget comparisons of fisheropt's optimizers with the ones people use today.

Entry point: the command `fisheropt` (`fisheropt_lab.cli:main`). The lab sees public names of fisheropt only.
"""
