"""Optimizations of speed and memory, applied to a finished model. Results stay the same."""
