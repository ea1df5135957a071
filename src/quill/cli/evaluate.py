"""`quill evaluate`: the loss of a trained model over a whole split of its text, and bits per character.

The protocol is the one of docs/architecture.md: consecutive windows, every token scored once, no randomness.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quill.cli.arguments import Parser
from quill.errors import CheckpointError
from quill.runs.resume import stored_settings

if TYPE_CHECKING:
    from torch import Tensor

    from quill.engines.base import Engine


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill evaluate` takes."""
    parser.take_bare_word("out_dir")
    parser.add_argument("--out_dir", type=str, help="the run to measure; without it the newest run in this folder")
    parser.add_argument("--checkpoint", type=Literal["best", "last"], default="best", help="which one of the run")
    parser.add_argument(
        "--split", type=Literal["val", "train"], default="val", help="the last tenth of the text, or the rest"
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="windows scored together; changes speed, not the result"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--weights",
        type=Literal["fp32", "int8"],
        default="fp32",
        help="int8 measures what quill generate --weights=int8 writes with",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print the result for people or for programs."""
    from quill.checkpoints.run_folder import load_checkpoint, newest_run
    from quill.data.dataset import prepare_dataset
    from quill.device import resolve_device
    from quill.engines.make import make_engine
    from quill.evaluation.split_loss import evaluate_split
    from quill.validation import require

    require(arguments.batch_size >= 1, "batch_size", arguments.batch_size, "1 or more")
    out_dir = Path(arguments.out_dir) if arguments.out_dir else newest_run()
    checkpoint = load_checkpoint(out_dir, device=resolve_device(arguments.device), checkpoint=arguments.checkpoint)
    settings = stored_settings(out_dir)
    if settings is None:
        raise CheckpointError(f"{out_dir} has no config.yaml that says which text to measure on: give a run directory")
    dataset = prepare_dataset(settings["dataset"], tokenizer=settings["tokenizer"], data_dir=settings["data_dir"])
    if dataset.tokenizer.to_json() != checkpoint.tokenizer.to_json():
        raise CheckpointError(
            f"{settings['dataset']} has changed since {out_dir} was trained (other characters): "
            "train again, or put the old text back"
        )
    tokens = dataset.val if arguments.split == "val" else dataset.train
    forward = (
        None if arguments.weights == "fp32" else scorer(make_engine(checkpoint.model, quantization=arguments.weights))
    )
    result = evaluate_split(
        checkpoint.model, tokens, dataset.tokenizer, batch_size=arguments.batch_size, forward=forward
    )
    if arguments.json:
        facts = {
            f"{arguments.split}_loss": result.loss,
            "bits_per_character": result.bits_per_character,
            "tokens": result.tokens,
            "step": checkpoint.step,
        }
        print(json.dumps(facts))
        return 0
    split = {"val": "validation", "train": "training"}[arguments.split]
    print(f"{split} loss      {result.loss:.4f} nats per token, over all {result.tokens:,} tokens of the {split} split")
    print(f"bits per character   {result.bits_per_character:.4f}")
    print(f"measured             {checkpoint.path}, step {checkpoint.step}")
    return 0


def scorer(engine: Engine) -> Callable[[Tensor], Tensor]:
    """Return what makes logits_BTV of tokens_BT with an engine's own weights."""
    import torch

    return lambda tokens_BT: torch.stack([torch.from_numpy(engine.logits(tokens_T.tolist())) for tokens_T in tokens_BT])
