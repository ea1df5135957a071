"""Experiments that look inside a model: communication, heads, refinement, induction."""
