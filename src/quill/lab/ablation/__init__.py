"""Remove parts of a model for the duration of a block, and measure the loss that this costs."""
