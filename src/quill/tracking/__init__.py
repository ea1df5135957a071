"""Trackers, which receive the events of a run: metrics.jsonl, samples, plots, the terminal."""
