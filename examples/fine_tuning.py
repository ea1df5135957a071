"""Fine-tune: start from the weights of a trained model, and train on another text.

    python examples/fine_tuning.py

The first model learns English from the help texts inside Python. The second starts from it and learns Python code. For
comparison, a third learns the same code from random weights, in as many steps.
"""

import argparse
import inspect

import quill
from quill.errors import TokenizerError

CODE = inspect.getsource(argparse)  # 100 kB of Python


if __name__ == "__main__":
    quill.run(config="debug", max_iters=300, out_dir="out-english", overwrite=True)
    code = {"text": CODE, "learning_rate": 3e-3, "max_iters": 100, "sample_tokens": 0, "overwrite": True}
    try:
        tuned = quill.run(init_from="out-english", out_dir="out-tuned", **code)
    except TokenizerError as error:  # the code has characters that the English text lacks
        print(f"\n{error}\nGive them new rows in the embedding, then:\n")
        tuned = quill.run(init_from="out-english", vocab="extend", out_dir="out-tuned", **code)
    fresh = quill.run(config="debug", out_dir="out-fresh", **code)
    print(f"\nfine-tuned:          {tuned.best_val_loss:.3f} nats per token on the code")
    print(f"from random weights: {fresh.best_val_loss:.3f}")
