"""`quill generate`: a trained model continues a prompt, and the text appears as it is generated.

Only the text goes to standard output, so that it can be piped; notes go to standard error.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TextIO

from quill.cli.arguments import Parser
from quill.errors import ConfigError
from quill.files import expand_home
from quill.generation.sample import default_prompt
from quill.validation import require, show

if TYPE_CHECKING:
    from quill.generation.language_model import LanguageModel

ESCAPES = {"\\n": "\n", "\\t": "\t"}
"""Escapes in --stop for characters that are hard to type in a shell."""

LONGEST_PROMPT = 10_000_000  # characters


def add_arguments(parser: Parser) -> None:
    """Add the flags of `quill generate` to the parser."""
    parser.take_bare_word("prompt")
    add = parser.add_argument
    add("--prompt", type=str, help="text to continue; without it standard input is read, if something is piped in")
    add("--prompt_file", type=str, help="file with the text to continue (without its last line break)")
    add("--max_new_tokens", type=int, default=500, help="tokens to generate; characters, with the char tokenizer")
    add(
        "--temperature",
        type=float,
        default=0.8,
        help="0 takes the likeliest token, 1 keeps the model's own probabilities, above 1 evens them out",
    )
    add("--top_k", type=int | None, help="keep only the k likeliest tokens")
    add("--top_p", type=float | None, help="keep only the likeliest tokens that together have this probability")
    add("--min_p", type=float | None, help="keep only tokens at least this fraction as likely as the likeliest")
    add("--presence_penalty", type=float, default=0.0, help="subtracted from the logit of tokens generated before")
    add(
        "--frequency_penalty",
        type=float,
        default=0.0,
        help="subtracted from the logit of a token for each time it was generated before",
    )
    add("--repetition_penalty", type=float, default=1.0, help="divides logits of tokens in the prompt or the text")
    add("--num_samples", type=int, default=1, help="texts to generate, together as one batch")
    add(
        "--seed", type=int | None, help="the same seed gives the same text; without one the text is different each time"
    )
    add(
        "--stop",
        type=str,
        action="append",
        default=[],
        help=r"end before this text (may be repeated); \n in it is a line break, \t a tab",
    )
    add(
        "--unknown",
        type=Literal["error", "skip"],
        default="error",
        help="what to do with prompt characters outside the vocabulary",
    )
    add(
        "--out_dir",
        type=str,
        help="run to load, or tiny, the small model that comes with Quill; without it the newest run in this folder",
    )
    add(
        "--checkpoint",
        type=Literal["best", "last"],
        default="best",
        help="which checkpoint of the run: best has the lowest validation loss",
    )
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add(
        "--engine",
        type=Literal["auto", "torch", "numba", "cuda"],
        default="auto",
        help="implementation of the model: cuda is fastest on a GPU, numba on a CPU; torch runs anywhere",
    )
    add(
        "--quantization",
        type=Literal["int8"] | None,
        help="int8 uses a quarter of the memory and is faster, with a slightly higher loss",
    )
    parser.accept_old_name("weights", "quantization", {"fp32": "None"})


def run(arguments: argparse.Namespace) -> int:
    """Print the prompt and the text that continues it."""
    from quill.generation.language_model import load

    require(arguments.num_samples >= 1, "num_samples", arguments.num_samples, "1 or more")
    prompt = read_prompt(arguments)
    model = load(
        arguments.out_dir,
        device=arguments.device,
        checkpoint=arguments.checkpoint,
        engine=arguments.engine,
        quantization=arguments.quantization,
        on_status=note,
    )
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    stop = [read_stop(text, model) for text in arguments.stop]
    # Everything is checked before anything is printed, so that a bad flag leaves standard output empty.
    pieces = model.stream(
        known_prompt(prompt, model, arguments.unknown),
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
        stop=stop,
        echo=True,
    )
    vocab_size = model.tokenizer.vocab_size
    if arguments.top_k is not None and arguments.top_k > vocab_size:
        note(f"top_k={arguments.top_k} is more than the {vocab_size} tokens of the vocabulary: all are kept")
    if model.checkpoint is not None:
        again = "" if arguments.seed is not None else f"; repeat with --seed={seed} for the same text"
        note(f"{model.checkpoint.path}{again}")
    write(pieces, arguments.num_samples)
    return 0


def read_prompt(arguments: argparse.Namespace) -> str | None:
    """Return the text to continue, from the flag, the file or standard input; None if there is none."""
    if arguments.prompt is not None and arguments.prompt_file is not None:
        raise ConfigError("--prompt and --prompt_file are both given: use one of them")
    if arguments.prompt is not None:
        return arguments.prompt
    if arguments.prompt_file is not None:
        try:
            # The byte tokenizer takes bytes that are not UTF-8 as they are.
            with open(expand_home(arguments.prompt_file), encoding="utf-8-sig", errors="surrogateescape") as file:
                text = read_bounded(file, f"--prompt_file={show(arguments.prompt_file)}")
        except OSError as error:
            raise ConfigError(
                f"--prompt_file={show(arguments.prompt_file)} cannot be read: {error.strerror}"
            ) from error
        if not text:
            raise ConfigError(f"--prompt_file={show(arguments.prompt_file)} is empty: give it a text to continue")
        return text.removesuffix("\n") or text
    if sys.stdin is None or sys.stdin.isatty():
        return None
    text = read_bounded(sys.stdin, "standard input")
    return text.removesuffix("\n") or text or None


def read_bounded(file: TextIO, name: str) -> str:
    """Return the text in a file; ConfigError where it is far too long for a prompt, such as /dev/zero."""
    text = file.read(LONGEST_PROMPT + 1)
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(f"{name} has more than {LONGEST_PROMPT:,} characters: give a shorter prompt")
    return text


def known_prompt(prompt: str | None, model: LanguageModel, unknown: str) -> str:
    """Return the prompt, or the default one; with unknown="skip", without characters outside the vocabulary."""
    if prompt is None:
        return default_prompt(model.tokenizer)
    dropped = model.tokenizer.unknown_characters(prompt) if unknown == "skip" else []
    if not dropped:
        return prompt
    known = model.tokenizer.drop_unknown(prompt)
    if not known:
        raise ConfigError(f"the prompt {show(prompt)} has no character of the vocabulary: give another prompt")
    note(f"skipped, because the vocabulary lacks them: {' '.join(repr(c) for _, c in dropped[:10])}")
    return known


def read_stop(typed: str, model: LanguageModel) -> str:
    """Return the stop string that was typed, with escapes replaced; print a note if it may be unexpected."""
    text = "\\".join(_replace_escapes(part) for part in typed.split("\\\\"))
    if text != typed:
        note(rf"--stop={typed} is read as {text!r}; \\ is a backslash")
    if text and (unknown := model.tokenizer.unknown_characters(text)):
        note(f"--stop={typed} never matches: the vocabulary lacks {unknown[0][1]!r}")
    return text


def _replace_escapes(text: str) -> str:
    for escape, character in ESCAPES.items():
        text = text.replace(escape, character)
    return text


def write(pieces: Iterable[tuple[int, str]], num_samples: int) -> None:
    """Print the first text as it is generated, the others after it, each under a line with its number."""
    texts: list[list[str]] = [[] for _ in range(num_samples)]
    if num_samples > 1:
        print(f"──── sample 1 of {num_samples} ────")
    for row, piece in pieces:
        texts[row].append(piece)
        if row == 0:
            print(shown(piece), end="", flush=True)
    print(end="" if texts[0] and texts[0][-1].endswith("\n") else "\n")
    for number, text in enumerate(texts[1:], start=2):
        whole = "".join(text)
        print(f"──── sample {number} of {num_samples} ────")
        print(shown(whole), end="" if whole.endswith("\n") else "\n")


def shown(text: str) -> str:
    """Return the text as it is printed: in a terminal, without control characters."""
    if not sys.stdout.isatty():
        return text
    from quill.tracking.terminal import printable

    return printable(text)


def note(text: str) -> None:
    """Print a note that is not part of the text."""
    print(f"quill: {text}", file=sys.stderr, flush=True)
