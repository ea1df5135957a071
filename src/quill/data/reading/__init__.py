"""Find the text files behind a path, and read them piece by piece."""
