"""Loss over a split of the text."""
