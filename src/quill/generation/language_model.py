"""A trained model with its tokenizer: text in, text out. `quill.load("out")` returns a LanguageModel.

Every error in the arguments of a method is raised when it is called, before the first token.

Reference: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), for generation by continuation.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np

from quill.checkpoints.format import Checkpoint
from quill.checkpoints.model_file import checked_path, save_model
from quill.checkpoints.named import find_model
from quill.checkpoints.run_folder import load_checkpoint
from quill.device import means_cpu, resolve_device
from quill.engines.make import ENGINES, QUANTIZATIONS, device_of, how_many_slots, make_engine
from quill.engines.request import MOST_SAMPLES, TokenEvent, whole_number
from quill.errors import ConfigError
from quill.generation.batch_generator import BatchGenerator
from quill.generation.completion import Completion, Piece, collect, join, likeliest
from quill.generation.logprobs import prompt_tokens
from quill.generation.options import GenerateOptions, OldLoadOptions, check_names, encode_prompt, make_request, renamed
from quill.generation.text_stream import TextStream, as_stop_strings, decode_prompt
from quill.model.config import architecture_of
from quill.process import lock_freed_by_fork, spin_briefly
from quill.tokenizers.base import Tokenizer
from quill.validation import require

if TYPE_CHECKING:
    from torch import Tensor

    from quill.evaluation.split_loss import Evaluation
    from quill.model.build import Model

OnStatus = Callable[[str], None]


class LanguageModel:
    """A GPT and its tokenizer. Arguments that cannot be used are a ConfigError or a TokenizerError.

    `engine` is torch, numba, cuda or auto; `quantization` is None or "int8". Engines other than torch copy the weights
    when the first text is generated; later changes have no effect. `on_status` is called with a sentence when something
    takes long, or another engine is used than requested. All methods may be called from several threads.
    `copy.deepcopy` returns an independent model, and pickling moves a model to another process; neither keeps
    `on_status`.
    """

    def __init__(
        self,
        model: Model | Checkpoint,
        tokenizer: Tokenizer,
        *,
        engine: str = "torch",
        quantization: Literal["int8"] | None = None,
        on_status: OnStatus | None = None,
        **old: Unpack[OldLoadOptions],
    ) -> None:
        if old:
            new = {"quantization": quantization, "on_status": on_status} | renamed(old)
            quantization, on_status = new["quantization"], new["on_status"]
        require(hasattr(model, "config"), "model", model, "a GPT or a Checkpoint")
        require(hasattr(tokenizer, "vocab_size"), "tokenizer", tokenizer, "a tokenizer, such as ByteTokenizer()")
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model vocab_size={model.config.vocab_size}:"
                " use the tokenizer that the model was trained with"
            )
        require(engine in ENGINES, "engine", engine, f"one of {', '.join(ENGINES)}")
        require(quantization in QUANTIZATIONS, "quantization", quantization, "None or 'int8'")
        require(on_status is None or callable(on_status), "on_status", on_status, "callable with a text, or None")
        self._source = model
        self.config = model.config
        self.tokenizer = tokenizer
        self.engine, self.quantization = engine, quantization
        self._on_status = on_status
        self._batch: BatchGenerator | None = None
        self._lock = lock_freed_by_fork()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint that was loaded; None for a model that was built in this program."""
        return self._source if isinstance(self._source, Checkpoint) else None

    @property
    def model(self) -> Model:
        """The PyTorch model."""
        return self._source.model if isinstance(self._source, Checkpoint) else self._source

    @property
    def batch(self) -> BatchGenerator:
        """The generator of all texts of this model, shared by all readers. Its engine is made at the first use."""
        with self._lock:
            if self._batch is None:
                slots = how_many_slots(self.config, device_of(self._source))
                options: dict[str, Any] = {"quantization": self.quantization, "on_status": self._on_status}
                self._batch = BatchGenerator(make_engine(self._source, self.engine, slots=slots, **options))
            return self._batch

    @overload
    def generate(self, prompt: str, *, num_samples: None = None, **options: Unpack[GenerateOptions]) -> str: ...

    @overload
    def generate(self, prompt: str, *, num_samples: int, **options: Unpack[GenerateOptions]) -> list[str]: ...

    def generate(
        self, prompt: str, *, num_samples: int | None = None, **options: Unpack[GenerateOptions]
    ) -> str | list[str]:
        """Return a text that continues the prompt, or with `num_samples` a list of that many texts.

        The prompt is included only if `echo` is True. The first of several texts is the one that a call for a single
        text returns with the same seed.
        """
        count = self._count(num_samples)
        pieces = self._generate("generate", prompt, count, None, options)
        texts = join(((piece.row, piece.text) for piece in pieces), count)
        return texts[0] if num_samples is None else texts

    @overload
    def stream(
        self, prompt: str, *, num_samples: None = None, **options: Unpack[GenerateOptions]
    ) -> Generator[str]: ...

    @overload
    def stream(
        self, prompt: str, *, num_samples: int, **options: Unpack[GenerateOptions]
    ) -> Generator[tuple[int, str]]: ...

    def stream(
        self, prompt: str, *, num_samples: int | None = None, **options: Unpack[GenerateOptions]
    ) -> Generator[str] | Generator[tuple[int, str]]:
        """Return an iterator over the text of `generate` in pieces of whole characters, as they are generated.

        With `num_samples` it yields (row, piece), because the rows are generated together. Generation pauses if the
        iterator is not read; when it is closed or deleted, the rest is cancelled.
        """
        pieces = self._generate("stream", prompt, self._count(num_samples), None, options)
        if num_samples is None:
            return (piece.text for piece in pieces if piece.text)
        return ((piece.row, piece.text) for piece in pieces if piece.text)

    def complete(
        self,
        prompt: str,
        *,
        num_samples: int = 1,
        best_of: int | None = None,
        logprobs: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]:
        """Return `num_samples` complete texts, with their tokens and why each ended.

        `logprobs` requests the log-probability of each token, and of that many of the likeliest tokens at each
        position. `best_of` generates that many texts and returns those with the highest mean log-probability. With
        `echo` the prompt's tokens are included; the first one, and those before the context, have no log-probability.
        """
        count = self._count(num_samples)
        many = count if best_of is None else whole_number("best_of", best_of, least=1, most=MOST_SAMPLES)
        require(many >= count, "best_of", best_of, f"at least num_samples={num_samples}")
        needed = logprobs if logprobs is not None or best_of is None else 0
        completions = collect(self._generate("complete", prompt, many, needed, options), many)
        if best_of is not None:
            completions = likeliest(completions, count)
        if options.get("echo"):
            tokens = encode_prompt(self.tokenizer, prompt, options.get("unknown", "error"))
            read = prompt_tokens(tokens, self.config.block_size, logprobs, self.batch.logits)
            completions = [replace(each, tokens=(*read, *each.tokens)) for each in completions]
        return completions

    def logits(self, tokens: str | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Return logits_TV of the PyTorch model: row t scores each token as the next one after tokens 0 to t.

        `tokens` is text, token ids, or an array or tensor of shape (T,), from 1 to block_size of them.
        """
        from quill.generation.forward import logits_of

        return logits_of(self.model, self.tokenizer.encode(tokens) if isinstance(tokens, str) else tokens)

    def evaluate(
        self, path: str | PathLike[str] | None = None, *, text: str | None = None, batch_size: int = 64
    ) -> Evaluation:
        """Return the loss over a whole text, each token but the first scored once, in windows of block_size.

        `path` is a file, a folder, a glob or the name of a corpus, as for `quill train`; `text` is the text itself.
        With quantization the quantized model is measured. Characters that the vocabulary lacks are a TokenizerError
        that names them, and a text of fewer than two tokens is a CorpusError.
        """
        from quill.generation.forward import evaluate_text

        forward = None if self.quantization is None else self.batch.logits
        return evaluate_text(self.model, self.tokenizer, path, text, batch_size, forward)

    def _count(self, num_samples: object) -> int:
        return 1 if num_samples is None else whole_number("num_samples", num_samples, 1, MOST_SAMPLES)

    def _generate(
        self, method: str, prompt: str, num_rows: int, logprobs: int | None, options: GenerateOptions
    ) -> Iterator[Piece]:
        """Check all arguments now, and return an iterator over the pieces of all rows."""
        check_names(method, options)
        stop_strings = as_stop_strings(options.get("stop"))
        first = make_request(self.tokenizer, prompt, options, logprobs)
        length, context = len(first.prompt), self.config.block_size
        if length > context and self._on_status:
            self._on_status(f"the prompt has {length:,} tokens, and the model reads the last {context:,} of them")
        before, unfinished = decode_prompt(self.tokenizer, first.prompt) if options.get("echo") else ("", [])
        requests = [replace(first, row=row) if row else first for row in range(num_rows)]
        events = self.batch.follow(requests)
        streams = [TextStream(self.tokenizer, stop_strings, unfinished) for _ in requests]
        return self._pieces(before, events, streams)

    def _pieces(
        self, before: str, events: Iterator[tuple[int, TokenEvent]], streams: list[TextStream]
    ) -> Iterator[Piece]:
        if before:
            yield from (Piece(row, before, None, None) for row in range(len(streams)))
        for row, event in events:
            stream = streams[row]
            if stream.stopped:  # a token of the same burst, after the stop string
                continue
            piece = stream.feed(event.token.token_id) if event.token is not None else ""
            if stream.stopped:
                self.batch.cancel(event.request_id)
            elif event.finish_reason is not None:
                piece += stream.flush()
            reason = "stop" if stream.stopped else "length" if event.finish_reason else None
            yield Piece(row, piece, event.token, reason)

    def __repr__(self) -> str:
        shape, source = self.config, self.checkpoint
        weights = source.weights.values() if source else self.model.parameters()
        count = sum(int(np.prod(weight.shape)) for weight in weights)
        how = f"engine {self.engine}" + (f", {self.quantization}" if self.quantization else "")
        return (
            f"LanguageModel({architecture_of(shape)} GPT, {count:,} parameters, {shape.n_layer} layers of width "
            f"{shape.n_embd}, context {shape.block_size}, {self.tokenizer.kind} tokenizer of {shape.vocab_size} "
            f"tokens, {how}, {f'loaded from {source.path}' if source else 'not loaded from a file'})"
        )

    def __getstate__(self) -> dict[str, Any]:
        source = self._source
        if isinstance(source, Checkpoint) and "model" in vars(source):  # its weights may have changed since
            weights = {name: weight.detach().float().cpu().numpy() for name, weight in source.model.named_parameters()}
            source = replace(source, weights=weights)
        return {**vars(self), "_source": source, "_batch": None, "_on_status": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=lock_freed_by_fork())


def load(
    path: str | PathLike[str] | None = None,
    device: str = "auto",
    checkpoint: Literal["best", "last"] = "best",
    *,
    engine: str = "auto",
    quantization: Literal["int8"] | None = None,
    on_status: OnStatus | None = None,
    **old: Unpack[OldLoadOptions],
) -> LanguageModel:
    """Load a trained model from a run directory, a checkpoint folder or a .safetensors file, by default the newest run.

    "tiny" is a small model that comes with Quill, unless this folder has a file or folder of that name.
    `checkpoint` selects one of a run: the best has the lowest validation loss. `engine` is auto, torch, numba or cuda.
    `quantization="int8"` rounds the weights to 8 bits: a quarter of the memory, faster, slightly higher loss. A model
    that cannot be read is a CheckpointError.
    """
    spin_briefly()
    if old:
        new = {"checkpoint": checkpoint, "quantization": quantization, "on_status": on_status} | renamed(old)
        checkpoint, quantization, on_status = new["checkpoint"], new["quantization"], new["on_status"]
    require(engine in ENGINES, "engine", engine, f"one of {', '.join(ENGINES)}")
    require(quantization in QUANTIZATIONS, "quantization", quantization, "None or 'int8'")
    require(checkpoint in ("best", "last"), "checkpoint", checkpoint, "'best' or 'last'")
    require(isinstance(device, str), "device", device, "the name of a device, such as 'cpu' or 'cuda'")
    loaded = load_checkpoint(find_model(path), "cpu" if means_cpu(device) else resolve_device(device), checkpoint)
    return LanguageModel(loaded, loaded.tokenizer, engine=engine, quantization=quantization, on_status=on_status)


def save(model: LanguageModel, path: str | PathLike[str]) -> Path:
    """Save a model with its tokenizer for `load`, and return the file.

    A path that ends in .safetensors is the file; any other is a folder, and the file in it is model.safetensors. It is
    written whole or not at all, and replaces an existing file. If it cannot be written, that is a CheckpointError.
    """
    require(isinstance(model, LanguageModel), "model", model, "a LanguageModel, as quill.load returns it")
    source, about = model.checkpoint, {}
    if source is not None:
        unchanged = "model" not in vars(source)  # otherwise its weights may have been trained since
        about = {"step": source.step, "val_loss": source.val_loss if unchanged else None}
        about["text_sha256"] = source.text_sha256
    return save_model(checked_path(path), model.model, model.tokenizer, **about)
