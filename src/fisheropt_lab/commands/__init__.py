"""The bodies of the command line, one module per command; `fisheropt_lab.cli` puts them together."""
