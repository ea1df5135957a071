"""The pieces of the command line's parser."""
