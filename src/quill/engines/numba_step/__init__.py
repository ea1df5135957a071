"""One forward step of a GPT on a CPU, compiled by Numba. Start with step.py."""
