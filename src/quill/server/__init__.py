"""The HTTP server of `quill serve`: an API for completions, and a page that looks inside models."""
