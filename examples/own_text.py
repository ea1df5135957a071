"""Train a small GPT on a text of your own, measure it, and let it generate.

    python examples/own_text.py my.txt [another.txt …]

Without a file it trains on `pydoc`, the help texts inside Python, for a few seconds. For a real text, replace the sizes
by a time: `quill.run(dataset=…, minutes=5, out_dir=…)` chooses every setting for the text and the machine.
"""

import sys
from typing import Any

import quill

SETTINGS: dict[str, Any] = {
    "architecture": "modern", "optimizer": "muon", "learning_rate": 0.01, "lr_schedule": "linear", "warmup_iters": 0,
    "grad_clip": 0.0, "n_layer": 1, "n_head": 3, "n_embd": 96, "block_size": 64, "batch_size": 32, "dropout": 0.0,
    "max_iters": 100, "eval_interval": 50, "eval_iters": 5, "sample_tokens": 100,
}  # fmt: skip

if __name__ == "__main__":
    run = quill.run(dataset=sys.argv[1:] or "pydoc", out_dir="out-own-text", overwrite=True, **SETTINGS)
    model = run.load()  # the checkpoint with the lowest validation loss
    print(model.generate("The ", max_new_tokens=300, temperature=0.8, seed=1, unknown="skip"))
    print(f"\n{run.reason} after {run.step} steps; validation loss {run.best_val_loss:.3f} nats per token (estimate)")
