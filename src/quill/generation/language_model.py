"""A trained model with its tokenizer: text in, text out. This is what `quill.load("out")` returns.

On the way text → tokens → model → training → generation → people this is the last door: the command line, the lab and
the server all write through it. Everything that can be wrong with a request is found when the method is called, before
the first token.

Reference: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), for generation by continuation.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from quill.device import resolve_device
from quill.errors import ConfigError, require
from quill.generation.generate import evaluation_mode, generate_tokens
from quill.generation.sampling import SEEDS, SamplingConfig
from quill.generation.text_stream import TextStream, as_stop_strings
from quill.model.build import Model
from quill.text.tokenizer import Tokenizer
from quill.training.checkpoint import Checkpoint, load_checkpoint, newest_run


class GenerateOptions(TypedDict, total=False):
    """What every writing method takes beside the prompt."""

    max_new_tokens: int
    """how many tokens to write at most (500)"""
    temperature: float
    """0 takes the likeliest token; below 1 is bolder towards it, above 1 more even (0.8)"""
    top_k: int | None
    """keep only the k likeliest tokens (None: all)"""
    top_p: float | None
    """keep only the likeliest tokens that together hold this much probability (None: all)"""
    min_p: float | None
    """keep only tokens at least this fraction as likely as the likeliest one (None: all)"""
    seed: int | None
    """the same seed writes the same text (None: a new one each time)"""
    stop: str | Sequence[str] | None
    """end before this text, or the first of these texts, is written (None)"""
    unknown: Literal["error", "skip"]
    """what to do with characters of the prompt that the vocabulary lacks ("error")"""


class LanguageModel:
    """A GPT and its tokenizer, writing text. A request that cannot be met is a ConfigError or TokenizerError."""

    def __init__(self, model: Model, tokenizer: Tokenizer, checkpoint: Checkpoint | None = None) -> None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model vocab_size={model.config.vocab_size}:"
                " use the tokenizer that the model was trained with"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.checkpoint = checkpoint

    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> str:
        """Write on from the prompt and return what was written, without the prompt."""
        return "".join(self.stream(prompt, **options))

    def generate_many(self, prompt: str, *, num_samples: int, **options: Unpack[GenerateOptions]) -> list[str]:
        """Write `num_samples` texts from one prompt as one batch; the first equals `generate` with that seed."""
        pieces = self.stream_many(prompt, num_samples=num_samples, **options)
        texts = [""] * num_samples
        for row, piece in pieces:
            texts[row] += piece
        return texts

    def stream(self, prompt: str, **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """Yield the text of `generate` in pieces as it is written; characters are always whole."""
        return (piece for _, piece in self.stream_many(prompt, **options))

    def stream_many(
        self,
        prompt: str,
        *,
        num_samples: int = 1,
        max_new_tokens: int = 500,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        unknown: Literal["error", "skip"] = "error",
    ) -> Iterator[tuple[int, str]]:
        """Yield (row, piece) of several texts as they are written together; each row ends at its own stop string."""
        stop_strings = as_stop_strings(stop)
        tokens = generate_tokens(
            self.model,
            self._encode_prompt(prompt, unknown),
            max_new_tokens=max_new_tokens,
            num_samples=num_samples,
            sampling=SamplingConfig(temperature, top_k, top_p, min_p),
            seed=secrets.randbelow(SEEDS) if seed is None else seed,
        )
        streams = [TextStream(self.tokenizer, stop_strings) for _ in range(num_samples)]
        return _pieces(tokens, streams)

    def logits(self, tokens: str | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Return logits_TV: row t scores every token as the successor of token t, given the tokens up to t.

        `tokens` is text, token numbers, or an array or tensor of shape (T,), from 1 to block_size of them.
        """
        if isinstance(tokens, str):
            tokens = self.tokenizer.encode(tokens)
        if isinstance(tokens, np.ndarray):
            tokens = tokens.tolist()  # memory-mapped tokens are read-only, which torch warns about
        vocab_size, device = self.model.config.vocab_size, self.model.token_embedding.weight.device
        try:
            tokens_T = torch.as_tensor(tokens, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"tokens are not whole numbers ({error}): give text or token numbers") from None
        if tokens_T.dim() != 1 or len(tokens_T) == 0 or tokens_T.is_floating_point():
            shape = tuple(tokens_T.shape)
            raise ConfigError(
                f"tokens of shape {shape} and type {tokens_T.dtype}: give at least one token number, shape (T,)"
            )
        tokens_T = tokens_T.long()
        if tokens_T.min() < 0 or tokens_T.max() >= vocab_size:
            raise ConfigError(f"tokens hold numbers outside the vocabulary: they must be from 0 to {vocab_size - 1}")
        with torch.no_grad(), evaluation_mode(self.model):
            return self.model(tokens_T[None])[0].float()

    def _encode_prompt(self, prompt: str, unknown: str) -> list[int]:
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt={prompt!r} is not text")
        require(unknown in ("error", "skip"), "unknown", unknown, "'error' or 'skip'")
        if prompt == "":
            raise ConfigError("the prompt is empty: give at least one character to continue, a line break for example")
        known = self.tokenizer.drop_unknown(prompt) if unknown == "skip" else prompt
        if known == "":
            raise ConfigError(f"the prompt {prompt!r} has no character that the vocabulary knows: give another prompt")
        return self.tokenizer.encode(known).tolist()


def load(
    path: str | PathLike[str] | None = None, device: str = "auto", which: Literal["best", "last"] = "best"
) -> LanguageModel:
    """Load a trained model: from a run directory, a checkpoint folder or a .safetensors file, else the newest run here.

    A run directory holds its `which` checkpoint. What cannot be read is a CheckpointError.
    """
    require(which in ("best", "last"), "which", which, "'best' or 'last'")
    checkpoint = load_checkpoint(newest_run() if path is None else Path(path), resolve_device(device), which)
    return LanguageModel(checkpoint.model, checkpoint.tokenizer, checkpoint)


def _pieces(tokens: Iterator[list[int]], streams: list[TextStream]) -> Iterator[tuple[int, str]]:
    for token_of_row in tokens:
        for row, (stream, token) in enumerate(zip(streams, token_of_row, strict=True)):
            if piece := stream.feed(token):
                yield row, piece
        if all(stream.stopped for stream in streams):
            return
    for row, stream in enumerate(streams):
        if piece := stream.flush():
            yield row, piece
