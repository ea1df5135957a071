"""`quill generate`: a trained model writes on from a prompt, and the text appears as it is written.

Only the text goes to standard output; what is said about it goes to standard error, so the text can be piped.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from quill.cli.arguments import Parser
from quill.errors import ConfigError
from quill.generation.sample import opening
from quill.validation import require

if TYPE_CHECKING:
    from quill.generation.language_model import LanguageModel


def add_arguments(parser: Parser) -> None:
    """Give the parser what `quill generate` takes."""
    parser.take_bare_word("prompt")
    add = parser.add_argument
    add(
        "--prompt",
        type=str,
        help="text to continue; without it standard input is read, if something is piped in",
    )
    add("--prompt_file", type=str, help="file with the text to continue (its last line end does not count)")
    add(
        "--max_new_tokens",
        type=int,
        default=500,
        help="how much to write; characters, with the char tokenizer",
    )
    add(
        "--temperature",
        type=float,
        default=0.8,
        help="0 always takes the likeliest, 1 is as learnt, above 1 is wilder",
    )
    add("--top_k", type=int | None, help="choose among the k likeliest tokens only")
    add(
        "--top_p",
        type=float | None,
        help="choose among the likeliest tokens that together have this probability",
    )
    add(
        "--min_p",
        type=float | None,
        help="choose among tokens at least this fraction as likely as the likeliest",
    )
    add("--presence_penalty", type=float, default=0.0, help="taken from the score of a token that was written before")
    add(
        "--frequency_penalty",
        type=float,
        default=0.0,
        help="taken from a token's score for each time that it was written before",
    )
    add("--repetition_penalty", type=float, default=1.0, help="divides scores of tokens in the prompt or the text")
    add("--num_samples", type=int, default=1, help="how many texts to write, together as one batch")
    add(
        "--seed",
        type=int | None,
        help="the same seed writes the same text; without one each call writes another",
    )
    add(
        "--stop",
        type=str,
        action="append",
        default=[],
        help="end before this text is written (may be repeated)",
    )
    add(
        "--unknown",
        type=Literal["error", "skip"],
        default="error",
        help="prompt characters that the model never saw",
    )
    add("--out_dir", type=str, help="the run to write with; without it the newest run in this folder")
    add(
        "--checkpoint",
        type=Literal["best", "last"],
        default="best",
        help="best has the lowest validation loss",
    )
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add(
        "--engine",
        type=Literal["auto", "torch", "numba", "cuda"],
        default="auto",
        help="what computes: cuda is the quickest on a GPU, numba on a CPU, torch runs anywhere",
    )
    add(
        "--weights",
        type=Literal["fp32", "int8"],
        default="fp32",
        help="int8 takes a quarter of the memory, is quicker, and a little less exact",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write: the prompt, and what the model makes of it."""
    from quill.generation.language_model import load

    require(arguments.num_samples >= 1, "num_samples", arguments.num_samples, "1 or more")
    prompt = read_prompt(arguments)
    model = load(
        arguments.out_dir,
        device=arguments.device,
        which=arguments.checkpoint,
        engine=arguments.engine,
        weights=arguments.weights,
        on_status=note,
    )
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    prompt = known_prompt(prompt, model, arguments.unknown)
    # Asked before anything is written, so that a bad flag leaves standard output empty.
    pieces = model.stream_many(
        prompt,
        num_samples=arguments.num_samples,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        repetition_penalty=arguments.repetition_penalty,
        seed=seed,
        stop=arguments.stop,
    )
    vocab_size = model.tokenizer.vocab_size
    if arguments.top_k is not None and arguments.top_k > vocab_size:
        note(f"top_k={arguments.top_k} is more than the {vocab_size} tokens there are: all of them stay")
    if model.checkpoint is not None:
        again = "" if arguments.seed is not None else f"; --seed={seed} writes the same again"
        note(f"{model.checkpoint.path}{again}")
    write(pieces, prompt, arguments.num_samples)
    return 0


def read_prompt(arguments: argparse.Namespace) -> str | None:
    """Return the text to continue: from the flag, the file or standard input; None where there is none."""
    if arguments.prompt is not None and arguments.prompt_file is not None:
        raise ConfigError("--prompt and --prompt_file are both given: use one of them")
    if arguments.prompt is not None:
        return arguments.prompt
    if arguments.prompt_file is not None:
        try:
            # Bytes that are no text reach the byte tokenizer as they are.
            text = Path(arguments.prompt_file).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            raise ConfigError(f"--prompt_file={arguments.prompt_file!r} cannot be read: {error.strerror}") from error
        if not text:
            raise ConfigError(f"--prompt_file={arguments.prompt_file!r} is empty: give it a text to continue")
        return text.removesuffix("\n") or text
    if sys.stdin is None or sys.stdin.isatty():
        return None
    text = sys.stdin.read()
    return text.removesuffix("\n") or text or None


def known_prompt(prompt: str | None, model: LanguageModel, unknown: str) -> str:
    """Return the prompt as the model will read it, without the characters it never saw if they may be skipped."""
    if prompt is None:
        return opening(model.tokenizer)
    dropped = model.tokenizer.unknown_characters(prompt) if unknown == "skip" else []
    if not dropped:
        return prompt
    known = model.tokenizer.drop_unknown(prompt)
    if not known:
        raise ConfigError(f"the prompt {prompt!r} has no character that the model knows: give another prompt")
    note(f"skipped, because the model never saw them: {' '.join(repr(c) for _, c in dropped[:10])}")
    return known


def write(pieces, prompt: str, num_samples: int) -> None:
    """Print the first text as it is written, the others after it, each under a line with its number."""
    texts = [prompt] * num_samples
    if num_samples > 1:
        print(f"──── sample 1 of {num_samples} ────")
    print(shown(prompt), end="", flush=True)
    for row, piece in pieces:
        texts[row] += piece
        if row == 0:
            print(shown(piece), end="", flush=True)
    print(end="" if texts[0].endswith("\n") else "\n")
    for number, text in enumerate(texts[1:], start=2):
        print(f"──── sample {number} of {num_samples} ────")
        print(shown(text), end="" if text.endswith("\n") else "\n")


def shown(text: str) -> str:
    """Return the text as it may be printed: in a terminal without control characters, which could rearrange it."""
    if not sys.stdout.isatty():
        return text
    from quill.tracking.terminal import printable

    return printable(text)


def note(text: str) -> None:
    """Say something that is not part of the text."""
    print(f"quill: {text}", file=sys.stderr, flush=True)
