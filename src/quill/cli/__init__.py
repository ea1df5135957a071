"""The command line: flags and printed lines. Each command has a file, which main.py finds."""
