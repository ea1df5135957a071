"""Every activation of a text, by name. The idea is that of `run_with_cache` in TransformerLens.

    trace = quill.trace(quill.load("out"), "ROMEO:")
    trace["blocks.0.attention.weights_HTS"].shape          # (6, 6, 6): head, token, token that it attends to

Names end in the shape of what they hold. A batch of token ids has B in front (`weights_BHTS`):

    embedding_TD                          what the embeddings give (x₀ of the modern model)
    blocks.0.input_TD                     what block 0 gets
    blocks.0.attention.q_HTE k_HSE v_HSE  queries, keys (after rotation) and values, one for each head
    blocks.0.attention.weights_HTS        how much token t attends to token s; rows sum to 1
    blocks.0.attention.heads_HTE          weights · values
    blocks.0.attention.output_TD          what attention adds to the residual stream
    blocks.0.middle_TD                    the residual stream between attention and feed-forward
    blocks.0.feed_forward.hidden_TF       neurons, after their non-linearity
    blocks.0.feed_forward.output_TD       what the feed-forward network adds
    blocks.0.output_TD                    what block 0 returns
    final_norm_TD  logits_TV

    T time    S time (attended to)    D width    H heads    E size of a head    F hidden width    V vocabulary
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from quill.errors import ConfigError
from quill.lab.hooks import Attend, replacing_attend
from quill.lab.subject import Subject, Text, inference, labels_of, tokens_of
from quill.model.build import Model
from quill.units import format_bytes
from quill.validation import nearest, show

MOST_MEMORY = 256 << 20
"""Bytes of activations that a trace keeps in memory; further ones go to a temporary file each."""


class Trace(Mapping[str, np.ndarray]):
    """The activations of one text or batch, float32, by name. Large ones lie in files that go with the trace."""

    def __init__(self, arrays: dict[str, np.ndarray], tokens: np.ndarray, labels: list[str], folder: str | None = None):
        self.tokens = tokens
        """token ids, shape (T,) or (B, T)"""
        self.labels = labels
        """the text of each token; empty for a batch"""
        self._arrays = arrays
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise ConfigError(
                f"the trace has no {show(name)}{nearest(name, self._arrays)}; list(trace) names what it has"
            )
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __repr__(self) -> str:
        shown = "\n".join(f"  {name:<42}{array.shape}" for name, array in self.items())
        size = format_bytes(sum(array.nbytes for array in self.values()))
        return f"Trace of {self.tokens.size} tokens, {len(self)} activations, {size}\n{shown}"


def trace(subject: Subject, text: Text, names: str | Sequence[str] = "*") -> Trace:
    """Return the activations of a text, a sequence of token ids, or a batch of them.

    `names` selects what is kept, by name or pattern: `"*.weights_*"`. Tracing changes no logit. What cannot be traced
    is a ConfigError or a TokenizerError.
    """
    tokens = tokens_of(subject, text)
    patterns = [names] if isinstance(names, str) else list(names)
    store = Store(patterns, batch=tokens.dim() == 2)
    try:
        record(subject.model, tokens if tokens.dim() == 2 else tokens[None], store)
    except BaseException:
        store.delete()
        raise
    if not store.arrays:
        raise ConfigError(
            f"names={show(names)} selects no activation: trace(model, text) keeps all, list(trace) names them"
        )
    labels = labels_of(subject, tokens) if tokens.dim() == 1 else []
    return Trace(store.arrays, tokens.cpu().numpy(), labels, store.folder)


class Recorder(Protocol):
    """Receives the activations of a forward pass. Names have their shape with B."""

    def wants(self, name: str) -> bool:
        """Say whether to compute an activation that the model itself does not."""
        ...

    def add(self, name: str, tensor: Tensor) -> None:
        """Receive an activation, which must not be changed."""
        ...


def record(model: Model, tokens_BT: Tensor, recorder: Recorder) -> Tensor:
    """Run the model once, pass each activation to the recorder, and return logits_BTV."""
    with ExitStack() as stack, inference(model):
        watch(stack, model.embedding_dropout, "embedding_BTD", recorder)
        for layer, block in enumerate(model.blocks):
            watch_block(stack, model, layer, block, recorder)
        watch(stack, model.final_norm, "final_norm_BTD", recorder)
        logits_BTV = model(tokens_BT)
        recorder.add("logits_BTV", logits_BTV)
    return logits_BTV


def watch_block(stack: ExitStack, model: Model, layer: int, block: Any, recorder: Recorder) -> None:
    """Record what a block computes. A block of another kind gives those of these activations that it has."""
    prefix = f"blocks.{layer}."
    watch(stack, block, f"{prefix}input_BTD", recorder, of_input=True)
    attention, feed_forward = getattr(block, "attention", None), getattr(block, "feed_forward", None)
    if hasattr(attention, "attend"):
        stack.enter_context(replacing_attend(model, layer, recording(attention, f"{prefix}attention.", recorder)))
    watch(stack, attention, f"{prefix}attention.output_BTD", recorder)
    watch(stack, getattr(block, "feed_forward_norm", None), f"{prefix}middle_BTD", recorder, of_input=True)
    watch(stack, getattr(feed_forward, "activation", None), f"{prefix}feed_forward.hidden_BTF", recorder)
    watch(stack, feed_forward, f"{prefix}feed_forward.output_BTD", recorder)
    watch(stack, block, f"{prefix}output_BTD", recorder)


def watch(stack: ExitStack, module: nn.Module | None, name: str, recorder: Recorder, of_input: bool = False) -> None:
    """Record the input or the output of a module, if there is one, until the stack is closed."""
    if module is None:
        return

    def read_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        recorder.add(name, inputs[0])

    def read_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        recorder.add(name, output)

    handle = module.register_forward_pre_hook(read_input) if of_input else module.register_forward_hook(read_output)
    stack.callback(handle.remove)


def recording(attention: Any, prefix: str, recorder: Recorder) -> Callable[[Attend, Tensor, Tensor, Tensor], Tensor]:
    """Return a function for `replacing_attend` that records what an attention layer computes."""

    def attend(attend: Attend, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        heads_BHTE = attend(q_BHTE, k_BHSE, v_BHSE)
        for name, tensor in (("q_BHTE", q_BHTE), ("k_BHSE", k_BHSE), ("v_BHSE", v_BHSE), ("heads_BHTE", heads_BHTE)):
            recorder.add(prefix + name, tensor)
        if recorder.wants(f"{prefix}weights_BHTS") and hasattr(attention, "attention_weights"):
            recorder.add(f"{prefix}weights_BHTS", weights_of(attention, q_BHTE, k_BHSE, v_BHSE))
        return heads_BHTE

    return attend


def weights_of(attention: Any, q_BHTE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
    """Return weights_BHTS by the model's own written-out formula, without projecting a second time."""
    own = vars(attention).get("project")
    object.__setattr__(attention, "project", lambda x, cache=None: (q_BHTE, k_BHSE, v_BHSE))
    try:
        return attention.attention_weights(q_BHTE)  # which reads nothing of its argument but the device
    finally:
        if own is None:
            object.__delattr__(attention, "project")
        else:
            object.__setattr__(attention, "project", own)


class Store:
    """A recorder that keeps what matches a pattern. What exceeds `most_memory` bytes lies in memory-mapped files."""

    def __init__(self, patterns: Sequence[str], batch: bool, most_memory: int | None = None):
        self.arrays: dict[str, np.ndarray] = {}
        self.folder: str | None = None
        self._patterns, self._batch = patterns, batch
        self._left = MOST_MEMORY if most_memory is None else most_memory

    def wants(self, name: str) -> bool:
        """Say whether an activation matches a pattern."""
        return any(fnmatchcase(self._public(name), pattern) for pattern in self._patterns)

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep an activation, if it matches a pattern."""
        if not self.wants(name):
            return
        array = (tensor if self._batch else tensor[0]).detach().float().cpu().numpy()
        self._left -= array.nbytes
        self.arrays[self._public(name)] = array if self._left >= 0 else self._on_disk(array)

    def delete(self) -> None:
        """Delete the files."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _public(self, name: str) -> str:
        return name if self._batch else re.sub(r"_B(?=[A-Z]+$)", "_", name)

    def _on_disk(self, array: np.ndarray) -> np.ndarray:
        self.folder = self.folder or tempfile.mkdtemp(prefix="quill-trace-")
        path = Path(self.folder) / f"{len(self.arrays)}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")
