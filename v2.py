"""Train the recipe of the lecture "Let's build GPT", then write 500 characters; the same as `quill v2`.

python v2.py
"""

import sys

from quill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["v2", *sys.argv[1:]]))
