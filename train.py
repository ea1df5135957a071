"""Train a GPT; the same as `quill train`.

python train.py --dataset=shakespeare --batch_size=64 --block_size=256 --n_embd=384 --n_head=6 --n_layer=6 \\
    --max_iters=5000
"""

import sys

from quill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
