"""The command line: flags in, text out. One file for each command; main.py finds it."""
