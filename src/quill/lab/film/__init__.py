"""The film of a run: what a model computes for one text, at about 24 moments of its training."""
