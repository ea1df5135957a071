"""The routes that generate text, in the format of OpenAI's completions."""
