"""A complete training run, as `quill.run` and `quill train` start it: settings, resume, time budget."""
