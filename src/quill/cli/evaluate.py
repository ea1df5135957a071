"""`quill evaluate`: the loss of a trained model over a whole split of its text, and bits per character.

Consecutive windows, every token scored once, no randomness: evaluation/split_loss.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from quill.cli.arguments import Parser

if TYPE_CHECKING:
    from torch import Tensor

    from quill.checkpoints.format import Checkpoint
    from quill.data.mixed_dataset import AnyDataset
    from quill.data.reading.formats import OnProgress
    from quill.engines.base import Engine


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill evaluate` to the parser."""
    parser.take_bare_word("out_dir")
    parser.add_argument("--out_dir", type=str, help="the run to measure; by default the newest run in this folder")
    parser.add_argument(
        "--checkpoint", type=Literal["best", "last"], default="best", help="which checkpoint of the run"
    )
    parser.add_argument(
        "--split",
        type=Literal["val", "train"],
        default="val",
        help="val is the last tenth of the text, train is the rest",
    )
    parser.add_argument("--dataset", type=str, help="another text to measure on; by default the run's own")
    parser.add_argument("--data_dir", type=str, help="folder for prepared token files; by default the run's own")
    parser.add_argument(
        "--batch_size", type=int, default=64, help="windows scored together; changes the speed, not the result"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--quantization", type=Literal["int8"] | None, help="int8 measures the weights that generation in int8 uses"
    )
    parser.accept_old_name("weights", "quantization", {"fp32": "None"})
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Print the loss of a model over a split, as text or as JSON."""
    from quill.checkpoints.named import find_model
    from quill.checkpoints.run_folder import load_checkpoint
    from quill.device import resolve_device
    from quill.engines.make import make_engine
    from quill.evaluation.split_loss import evaluate_split
    from quill.runs.run_text import text_of_run
    from quill.tracking.phase_display import PhaseDisplay
    from quill.validation import require

    require(1 <= arguments.batch_size <= 10**6, "batch_size", arguments.batch_size, "from 1 to 1000000")
    device = resolve_device(arguments.device)
    out_dir = find_model(arguments.out_dir or None)
    checkpoint = load_checkpoint(out_dir, device=device, checkpoint=arguments.checkpoint)
    quantization = arguments.quantization
    forward = scorer(make_engine(checkpoint.model, quantization=quantization)) if quantization else None
    with PhaseDisplay() as display:
        if arguments.dataset is None:
            dataset = text_of_run(out_dir, checkpoint, arguments.data_dir, display)
        else:
            dataset = other_text(arguments.dataset, checkpoint, arguments.data_dir, display)
        result = evaluate_split(
            checkpoint.model,
            dataset.val if arguments.split == "val" else dataset.train,
            dataset.tokenizer,
            batch_size=arguments.batch_size,
            forward=forward,
            on_progress=lambda share: display("measuring the loss", share),
        )
    if arguments.json:
        facts = {
            f"{arguments.split}_loss": result.loss,
            "bits_per_character": result.bits_per_character,
            "tokens": result.tokens,
            "step": checkpoint.step,
            **({f"{arguments.split}_losses": result.losses} if result.losses else {}),
        }
        print(json.dumps(facts))
        return 0
    split = {"val": "validation", "train": "training"}[arguments.split]
    title = dataset.title or dataset.name
    print(f"{split} loss      {result.loss:.4f} nats per token, over all {result.tokens:,} tokens of the {split} split")
    for name, loss in result.losses.items():
        print(f"  of {name:15}  {loss:.4f}")
    print(f"bits per character   {result.bits_per_character:.4f}")
    print(f"measured             {checkpoint.path}, step {checkpoint.step}, on {title}")
    return 0


def other_text(name: str, checkpoint: Checkpoint, data_dir: str | None, on_progress: OnProgress) -> AnyDataset:
    """Return the dataset of another text, with the checkpoint's tokenizer."""
    from quill.data.mixed_dataset import prepare_any

    folder = data_dir or "data"
    return prepare_any(name, tokenizer=checkpoint.tokenizer, data_dir=folder, on_progress=on_progress)


def scorer(engine: Engine) -> Callable[[Tensor], Tensor]:
    """Return the function from tokens_BT to logits_BTV that uses an engine's own weights."""
    import torch

    return lambda tokens_BT: torch.stack([torch.from_numpy(engine.logits(tokens_T.tolist())) for tokens_T in tokens_BT])
