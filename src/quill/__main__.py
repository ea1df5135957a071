"""Lets `python -m quill` be the same as `quill`."""

import sys

from quill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
