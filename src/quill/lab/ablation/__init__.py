"""Remove parts of a model or replace what they compute, for the duration of a block, and measure what this changes."""
