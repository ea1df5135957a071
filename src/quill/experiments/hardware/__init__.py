"""Experiments about time: what limits a GPT on this machine, and what a batch costs."""
