"""The film of a run: what a model computes for one text, at up to 24 moments of its training."""
