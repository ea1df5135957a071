"""Checkpoints and run folders on disk."""
