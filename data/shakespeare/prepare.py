"""Prepare Tiny Shakespeare as token files; the same as `quill prepare --dataset=shakespeare`.

python data/shakespeare/prepare.py
"""

import sys

from quill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "--dataset=shakespeare", *sys.argv[1:]]))
