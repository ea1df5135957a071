"""A training run as a user means it: settings, start, resume, time budget."""
