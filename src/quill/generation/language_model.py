"""A trained model with its tokenizer: text in, text out. This is what `quill.load("out")` returns.

On the way text → tokens → model → training → generation → people this is the last door: the command line, the lab and
the server all write through it. Everything that can be wrong with a request is found when the method is called, before
the first token.

Reference: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), for generation by continuation.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import numpy as np

from quill.checkpoints.format import Checkpoint
from quill.checkpoints.run_folder import load_checkpoint, newest_run
from quill.device import means_cpu, resolve_device
from quill.engines.make import ENGINES, device_of, how_many_slots, make_engine
from quill.engines.random_numbers import SEEDS
from quill.engines.request import Request, SamplingConfig, Token, TokenEvent
from quill.errors import ConfigError
from quill.generation.batch_generator import BatchGenerator
from quill.generation.logprobs import with_logprobs
from quill.generation.text_stream import TextStream, as_stop_strings
from quill.tokenizers.base import Tokenizer
from quill.validation import nearest, require

if TYPE_CHECKING:
    from torch import Tensor

    from quill.model.build import Model


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
    presence_penalty: float
    """taken from the score of every token written before (0)"""
    frequency_penalty: float
    """taken from the score of a token for each time it was written before (0)"""
    repetition_penalty: float
    """divides the scores of tokens that the prompt or the text has (1: leaves them as they are)"""
    logit_bias: Mapping[int | str, float] | None
    """added to the scores of these tokens, given as numbers or as their text (None)"""
    seed: int | None
    """the same seed writes the same text (None: a new one each time)"""
    stop: str | Sequence[str] | None
    """end before this text, or the first of these texts, is written (None)"""
    unknown: Literal["error", "skip"]
    """what to do with characters of the prompt that the vocabulary lacks ("error")"""


@dataclass(frozen=True)
class Completion:
    """A text that was written, whole."""

    text: str
    """what was written, without the stop string; with `echo`, the prompt before it"""
    tokens: tuple[Token, ...]
    """every token that was chosen, also those of the stop string; with `echo`, those of the prompt before them"""
    finish_reason: Literal["length", "stop"]
    """whether it ended at max_new_tokens or at a stop string"""

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of its tokens, in nats, as far as it was asked for."""
        known = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(known) / max(1, len(known))


class LanguageModel:
    """A GPT and its tokenizer, writing text. A request that cannot be met is a ConfigError or TokenizerError.

    `engine` and `weights` say how it writes, as in `quill.generation.engine`. Engines other than torch take the weights
    as they are when the first text is written. `on_status` is given a sentence where something takes long.
    """

    def __init__(
        self,
        model: Model | Checkpoint,
        tokenizer: Tokenizer,
        *,
        engine: str = "torch",
        weights: str = "fp32",
        on_status: Callable[[str], None] | None = None,
    ) -> None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model vocab_size={model.config.vocab_size}:"
                " use the tokenizer that the model was trained with"
            )
        self._source = model
        self.config = model.config
        self.tokenizer = tokenizer
        quantization = None if weights == "fp32" else weights
        self._make_engine = lambda slots: make_engine(
            model, engine, quantization=quantization, slots=slots, on_status=on_status
        )

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What was loaded, if anything was."""
        return self._source if isinstance(self._source, Checkpoint) else None

    @property
    def model(self) -> Model:
        """The model itself, as PyTorch knows it."""
        return self._source.model if isinstance(self._source, Checkpoint) else self._source

    @cached_property
    def batch(self) -> BatchGenerator:
        """All texts that are being written, whoever asked for them: one engine computes them together."""
        return BatchGenerator(self._make_engine(how_many_slots(self.config, device_of(self._source))))

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
        self, prompt: str, *, num_samples: int = 1, **options: Unpack[GenerateOptions]
    ) -> Iterator[tuple[int, str]]:
        """Yield (row, piece) of several texts as they are written together; each row ends at its own stop string."""
        events = self._write(prompt, num_samples, None, options)
        return ((row, piece) for row, piece, _, _ in events if piece)

    def complete(
        self,
        prompt: str,
        *,
        num_samples: int = 1,
        best_of: int | None = None,
        logprobs: int | None = None,
        echo: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]:
        """Return whole texts with what is known of each token.

        `logprobs` asks for log-probabilities, and for so many of the likeliest tokens at each place. `best_of` writes
        so many texts and returns the `num_samples` whose tokens are likeliest on average. `echo` puts the prompt
        before.
        """
        many = num_samples if best_of is None else best_of
        require(many >= num_samples, "best_of", best_of, f"at least num_samples={num_samples}")
        asked = logprobs if logprobs is not None or best_of is None else 0
        texts, reasons = [""] * many, ["length"] * many
        tokens: list[list[Token]] = [[] for _ in range(many)]
        for row, piece, event, reason in self._write(prompt, many, asked, options):
            texts[row] += piece
            if event is not None and event.token is not None:
                tokens[row].append(event.token)
            if reason == "stop":
                reasons[row] = "stop"
        completions = [Completion(*each) for each in zip(texts, map(tuple, tokens), reasons, strict=True)]  # type: ignore[arg-type]
        if best_of is not None:
            completions = sorted(completions, key=lambda c: -c.mean_logprob)[:num_samples]
        if echo:
            read = self._echo(prompt, logprobs, options.get("unknown", "error"))
            text = self.tokenizer.decode([token.token_id for token in read])
            completions = [replace(c, text=text + c.text, tokens=(*read, *c.tokens)) for c in completions]
        return completions

    def logits(self, tokens: str | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Return logits_TV: row t scores every token as the successor of token t, given the tokens up to t.

        `tokens` is text, token numbers, or an array or tensor of shape (T,), from 1 to block_size of them.
        """
        import torch

        from quill.model.modes import evaluation_mode

        if isinstance(tokens, str):
            tokens = self.tokenizer.encode(tokens)
        if isinstance(tokens, np.ndarray):
            tokens = tokens.tolist()  # memory-mapped tokens are read-only, which torch warns about
        vocab_size, device = self.config.vocab_size, self.model.token_embedding.weight.device
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

    def _write(
        self, prompt: str, num_samples: int, logprobs: int | None, options: GenerateOptions
    ) -> Iterator[tuple[int, str, TokenEvent | None, str | None]]:
        """Check everything now, and return what will be written: (row, piece of text, event, why it ended)."""
        settings = {"max_new_tokens": 500, "temperature": 0.8, "stop": None, "unknown": "error", **options}
        if unknown := sorted(settings.keys() - GenerateOptions.__annotations__.keys()):
            raise TypeError(f"there is no option {unknown[0]!r}{nearest(unknown[0], GenerateOptions.__annotations__)}")
        whole = isinstance(num_samples, int) and not isinstance(num_samples, bool)
        require(whole and num_samples >= 1, "num_samples", num_samples, "a whole number of at least 1")
        stop_strings = as_stop_strings(settings["stop"])
        names = [field.name for field in fields(SamplingConfig)]
        sampling = SamplingConfig(**{name: settings[name] for name in names if name in settings})
        seed = settings.get("seed")
        first = Request(
            tuple(self._encode_prompt(prompt, settings["unknown"])),
            settings["max_new_tokens"],
            sampling,
            secrets.randbelow(SEEDS) if seed is None else seed,
            logit_bias={self._token(key): bias for key, bias in (settings.get("logit_bias") or {}).items()},
            logprobs=logprobs,
        )
        batch = self.batch
        events = batch.follow([replace(first, row=row) for row in range(num_samples)])
        return self._pieces(batch, events, [TextStream(self.tokenizer, stop_strings) for _ in range(num_samples)])

    def _pieces(
        self, batch: BatchGenerator, events: Iterator[tuple[int, TokenEvent]], streams: list[TextStream]
    ) -> Iterator[tuple[int, str, TokenEvent | None, str | None]]:
        for row, event in events:
            stream = streams[row]
            if stream.stopped:  # of a burst that was on its way
                continue
            piece = stream.feed(event.token.token_id) if event.token is not None else ""
            if stream.stopped:
                batch.cancel(event.request_id)
            elif event.finish_reason is not None:
                piece += stream.flush()
            yield row, piece, event, "stop" if stream.stopped else event.finish_reason

    def _echo(self, prompt: str, logprobs: int | None, unknown: str) -> list[Token]:
        """Return the tokens of a prompt; of the first one, and of those beyond the context, no probability is known."""
        numbers = self._encode_prompt(prompt, unknown)
        if logprobs is None:
            return [Token(number) for number in numbers]
        seen = numbers[-self.config.block_size :]
        logits_TV = self.logits(seen).cpu().numpy()
        scored = [with_logprobs(n, logits_V, logprobs) for n, logits_V in zip(seen[1:], logits_TV, strict=False)]
        return [*(Token(number) for number in numbers[: len(numbers) - len(scored)]), *scored]

    def _token(self, key: int | str) -> int:
        """Return the number of a token that is given by its number or its text."""
        if not isinstance(key, str):
            return key
        numbers = self.tokenizer.encode(key).tolist()
        require(len(numbers) == 1, "logit_bias", key, "the text of a single token, or its number")
        return numbers[0]

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
    path: str | PathLike[str] | None = None,
    device: str = "auto",
    which: Literal["best", "last"] = "best",
    *,
    engine: str = "auto",
    weights: str = "fp32",
    on_status: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Load a trained model: from a run directory, a checkpoint folder or a .safetensors file, else the newest run here.

    A run directory holds its `which` checkpoint. `engine` is auto, torch, numba or cuda, and `weights` fp32 or int8
    (a quarter of the memory, quicker, and a little less exact). What cannot be read is a CheckpointError.
    """
    require(engine in ENGINES, "engine", engine, f"one of {', '.join(ENGINES)}")
    require(weights in ("fp32", "int8"), "weights", weights, "one of fp32, int8")
    require(which in ("best", "last"), "which", which, "'best' or 'last'")
    where = "cpu" if means_cpu(device) else resolve_device(device)
    checkpoint = load_checkpoint(newest_run() if path is None else Path(path), where, which)
    return LanguageModel(checkpoint, checkpoint.tokenizer, engine=engine, weights=weights, on_status=on_status)
