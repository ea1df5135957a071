"""One step of a GPT for a CPU, compiled by Numba. Read step.py first; nothing but the engine imports from here."""
