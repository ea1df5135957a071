"""How fast text is written: Quill, transformers and nanoGPT at the founding size, in turn in the same process.

    python benchmarks/generation.py --nanogpt=PATH --json=generation.json

Each contestant has a model of the same shape with random weights (speed does not depend on them), reads a prompt of
16 tokens and samples with top-k 40 by its own `generate`. Quill is measured from text to text, the others from tokens
to tokens. 240 new tokens fit the context of 256, 500 do not: Quill reads half a window again, nanoGPT reads a whole
window for each token, and transformers, which cannot go past its positions, gets a longer position table.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Figures, alternate, argument_parser, describe_hardware, print_table, write_json

from quill.generation.language_model import LanguageModel
from quill.model.config import GPTConfig
from quill.model.gpt import GPT
from quill.text.tokenizer import CharTokenizer

CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord(" ") + 64)))
PROMPT = "KING RICHARD III"
CONFIG = GPTConfig(vocab_size=len(CHARACTERS), dropout=0.0)
TOP_K = 40

Contestant = Callable[[int, int], None]
"""Writes this many texts of this many new tokens, all of one prompt."""


def main() -> int:
    """Measure every combination of batch size and length, print a table and write JSON."""
    parser = argument_parser(__doc__ or "", runs=3)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16], help="texts at once (%(default)s)")
    parser.add_argument("--new_tokens", type=int, nargs="+", default=[240, 500], help="tokens a text (%(default)s)")
    arguments = parser.parse_args()
    if arguments.nanogpt and not (arguments.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt={arguments.nanogpt} has no model.py: give a checkout of nanoGPT")

    torch.manual_seed(0)
    contestants: dict[str, Contestant] = {"Quill": quill_contestant()}
    if importlib.util.find_spec("transformers"):
        contestants["transformers"] = transformers_contestant(len(PROMPT) + max(arguments.new_tokens))
    if arguments.nanogpt:
        contestants["nanoGPT"] = nanogpt_contestant(arguments.nanogpt)

    rows, results = [], {}
    for batch_size in arguments.batch_sizes:
        for new_tokens in arguments.new_tokens:
            work = {name: timed(write, batch_size, new_tokens) for name, write in contestants.items()}
            case = f"batch {batch_size}, {new_tokens} new tokens"
            print(case, file=sys.stderr, flush=True)
            summaries = results[case] = alternate(work, arguments.runs)
            ours = summaries["Quill"]["tokens_per_second"].median
            for name, figures in summaries.items():
                speed = figures["tokens_per_second"]
                rows.append([name, batch_size, new_tokens, str(speed), f"{ours / speed.median:.2f}"])
    print(describe_hardware())
    title = f"Generation, {GPT(CONFIG).count_parameters() / 1e6:.2f} M parameters, float32, top-k {TOP_K}"
    columns = ["contestant", "batch", "new tokens", "tokens/s: median (range)", "Quill is × as fast"]
    print_table(title, columns, rows)
    if arguments.json:
        write_json(arguments.json, "generation", results, torch_threads=torch.get_num_threads(), runs=arguments.runs)
    return 0


def timed(write: Contestant, batch_size: int, new_tokens: int) -> Callable[[], Figures]:
    """Return one turn of a contestant: a short warm-up that is not counted, then the work."""

    def turn() -> Figures:
        write(batch_size, 8)
        started = time.perf_counter()
        write(batch_size, new_tokens)
        return {"tokens_per_second": batch_size * new_tokens / (time.perf_counter() - started)}

    return turn


def quill_contestant() -> Contestant:
    """Return Quill's `generate_many`, tokenizer included."""
    language_model = LanguageModel(GPT(CONFIG).eval(), CharTokenizer(CHARACTERS))

    def write(batch_size: int, new_tokens: int) -> None:
        texts = language_model.generate_many(
            PROMPT, num_samples=batch_size, max_new_tokens=new_tokens, top_k=TOP_K, seed=0
        )
        assert [len(text) for text in texts] == [new_tokens] * batch_size

    return write


def transformers_contestant(positions: int) -> Contestant:
    """Return the `generate` of transformers' GPT-2, with its own cache and its default attention."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = GPT2Config(
        vocab_size=CONFIG.vocab_size,
        n_positions=max(CONFIG.block_size, positions),
        n_embd=CONFIG.n_embd,
        n_layer=CONFIG.n_layer,
        n_head=CONFIG.n_head,
        bos_token_id=None,
        eos_token_id=None,  # else a random model may end early
        pad_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config).eval()

    def write(batch_size: int, new_tokens: int) -> None:
        prompt_BT = prompt_tokens(batch_size)
        mask_BT = torch.ones_like(prompt_BT)
        tokens_BT = model.generate(
            prompt_BT, attention_mask=mask_BT, do_sample=True, top_k=TOP_K, max_new_tokens=new_tokens
        )
        assert tokens_BT.shape == (batch_size, len(PROMPT) + new_tokens)

    return write


def nanogpt_contestant(checkout: Path) -> Contestant:
    """Return the `generate` of a nanoGPT checkout, whose model file is imported from where it lies."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    module = sys.modules["nanogpt_model"] = importlib.util.module_from_spec(spec)  # dataclasses look modules up there
    spec.loader.exec_module(module)
    shape = {name: getattr(CONFIG, name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False)).eval()

    def write(batch_size: int, new_tokens: int) -> None:
        tokens_BT = model.generate(prompt_tokens(batch_size), new_tokens, top_k=TOP_K)
        assert tokens_BT.shape == (batch_size, len(PROMPT) + new_tokens)

    return write


def prompt_tokens(batch_size: int) -> torch.Tensor:
    """Return the prompt's tokens for each text, shape (B, T)."""
    return torch.from_numpy(CharTokenizer(CHARACTERS).encode(PROMPT)).long().expand(batch_size, -1)


if __name__ == "__main__":
    sys.exit(main())
