"""`python -m fisheropt_lab` is the command `fisheropt`."""

from fisheropt_lab.cli import main

main()
