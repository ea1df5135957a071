"""The lessons of a GPT as experiments: each computes a verdict from measurements with a control."""
