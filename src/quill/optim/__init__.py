"""Optimizers as pure update rules."""
