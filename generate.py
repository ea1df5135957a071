"""Generate text with a trained GPT; the same as `quill generate`.

python generate.py --prompt="KING RICHARD III:" --temperature=0.9 --top_k=40 --max_new_tokens=500
"""

import sys

from quill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
