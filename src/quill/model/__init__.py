"""The GPT models, their configurations and their key/value cache."""
