"""What people and programs see of a run: metrics.jsonl, samples, plots, terminal, trackers."""
