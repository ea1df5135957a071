"""Fine-tune: start from the weights of a trained model, and go on training on another text.

    python examples/fine_tuning.py

The first model learns English from the help texts inside Python, the second goes on with Python code. For comparison, a
third learns the same code from nothing, with as many steps as the second.
"""

import argparse
import inspect

import quill

CODE = inspect.getsource(argparse)  # 100 kB of Python, in characters that the first model knows
RECIPE = {"learning_rate": 1e-3, "warmup_iters": 0, "max_iters": 60, "eval_interval": 30, "sample_tokens": 0}


def main() -> None:
    """Train three models, and print their losses on the code."""
    first = quill.run(config="debug", max_iters=300, out_dir="out-english", overwrite=True)
    code = {"text": CODE, "overwrite": True, **RECIPE}
    tuned = quill.run(init_from="out-english", out_dir="out-tuned", **code)
    fresh = quill.run(config="debug", out_dir="out-fresh", **code)
    print(f"the model of English, on code    {first.load().evaluate(CODE).loss:.3f} nats per character")
    print(f"fine-tuned on code               {tuned.best_val_loss:.3f}")
    print(f"trained on code from nothing     {fresh.best_val_loss:.3f}")


if __name__ == "__main__":
    main()
