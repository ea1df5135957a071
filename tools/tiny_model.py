"""Train `tiny`, the small model in the package, and write it with its provenance into src/quill/tiny.

    python tools/tiny_model.py

The run is kept in out-tiny. The model is that of its best checkpoint, with its weights rounded to float16. README.md
beside it states how it was made and what was measured.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import quill
from quill.checkpoints.format import describe_model, weights_of
from quill.checkpoints.manifest import WEIGHTS
from quill.checkpoints.named import tiny_model
from quill.checkpoints.tensor_file import write_tensor_file
from quill.evaluation.split_loss import evaluate_split
from quill.runs.run_text import text_of_run

RECIPE = Path(__file__).with_suffix(".yaml")
RUN = Path("out-tiny")
LARGEST = 2_000_000  # bytes

README = """\
# The model `tiny`

A small GPT that comes with Quill, so that `quill generate --out_dir=tiny` and `quill serve` write at once after the
installation. It writes in the manner of Shakespeare, character by character. It is for trying things out: it has no
knowledge and follows no instructions.

| | |
|---|---|
| made by | `python tools/tiny_model.py`, with the recipe [tools/tiny_model.yaml](../../../tools/tiny_model.yaml), Quill {version}, PyTorch {torch} |
| made on | {cpu} |
| text | Tiny Shakespeare (Karpathy, char-rnn): parts of Shakespeare's plays, in the public domain |
| SHA-256 of the text | `{text_sha256}` |
| model | {architecture}: {shape} |
| parameters | {parameters:,} |
| steps | {step:,} of {batch_size} × {block_size} characters |
| loss | {loss:.4f} nats per character over the whole validation split ({whole_loss:.4f} before rounding to float16) |
| weights | `model.safetensors`, float16, {size:,} bytes |
| SHA-256 of the weights | `{sha256}` |
| curve | `metrics.jsonl`, the events of the run |

It may be used under the licence of Quill.
"""  # noqa: E501


def main() -> int:
    """Train, then write the three files."""
    run = quill.run(config=str(RECIPE), out_dir=str(RUN), overwrite=RUN.exists())
    write_package(run.out_dir, run.settings)
    return 0


def write_package(out_dir: Path, settings: dict[str, Any]) -> None:
    """Write the best model of a run, its README and its events into the package."""
    trained = quill.load(out_dir, device="cpu").checkpoint
    assert trained is not None
    dataset = text_of_run(out_dir, trained, None, lambda what, share: None)
    whole_loss = evaluate_split(trained.model, dataset.val, dataset.tokenizer).loss
    folder = tiny_model()
    folder.mkdir(exist_ok=True)
    about = describe_model(
        trained.model, trained.tokenizer, step=trained.step, val_loss=trained.val_loss, text_sha256=trained.text_sha256
    )
    halves = {name: weight.to(torch.float16) for name, weight in weights_of(trained.model).items()}
    (folder / WEIGHTS).unlink(missing_ok=True)
    sha256 = write_tensor_file(folder / WEIGHTS, halves, about)
    size = (folder / WEIGHTS).stat().st_size
    assert size < LARGEST, f"{size:,} bytes"
    tiny = quill.load(folder, device="cpu").checkpoint
    assert tiny is not None
    loss = evaluate_split(tiny.model, dataset.val, dataset.tokenizer).loss
    config = about["model"]
    readme = README.format(
        version=quill.__version__,
        torch=torch.__version__,
        cpu=processor(),
        text_sha256=trained.text_sha256,
        architecture=about["architecture"],
        shape=", ".join(f"{name}={value}" for name, value in config.items()),
        parameters=sum(weight.numel() for weight in halves.values()),
        step=trained.step,
        batch_size=settings["batch_size"],
        block_size=config["block_size"],
        loss=loss,
        whole_loss=whole_loss,
        size=size,
        sha256=sha256,
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    shutil.copyfile(out_dir / "metrics.jsonl", folder / "metrics.jsonl")
    print(readme)


def processor() -> str:
    """Return the name of the processor and the number of its cores."""
    sys.path.insert(0, str(RECIPE.parent.parent / "benchmarks"))
    facts = importlib.import_module("measure").hardware()
    return f"{facts['processor']}, {facts['cores']} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
