"""Corpora, token files on disk, and batches; NumPy only."""
