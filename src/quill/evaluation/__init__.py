"""Losses: of logits, and of a model over a split of the text."""
