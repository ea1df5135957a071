"""Ablate parts of a model inside a block, by hooks or by an edit of weights.

An ablated activation is replaced by one of these:
    zero       0
    mean       its mean over all positions of reference windows
    resample   its value at the same position of another window, drawn at random: one window for a row, the same for all
               targets

Zero ablation takes the model where it never was in training, which overstates the cost; mean and resampling stay closer
to what it has seen (Zhang & Nanda 2023, "Towards Best Practices of Activation Patching").

Shapes: B batch, T time, N reference windows, S their length, X size of an activation (E for a head, D otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from quill.errors import ConfigError
from quill.lab.ablation.targets import AttentionLayer, FeedForwardLayer, Head, NGrams, Position, Target, targets_of
from quill.lab.hooks import replacing_heads, replacing_output
from quill.lab.subject import attention_of, inference
from quill.model.build import Model
from quill.validation import require, show

Method = Literal["zero", "mean", "resample"]
METHODS: tuple[Method, ...] = ("zero", "mean", "resample")
REFERENCE_BATCH = 16


@dataclass(frozen=True)
class Place:
    """An activation of shape (B, T, X): the output of a module, or of one head."""

    module: str
    """name of the module; of the attention, for a head"""
    layer: int | None = None
    head: int | None = None
    position: int | None = None
    """the only position to replace; None replaces all"""

    def replacing(self, model: Model, function: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Replace the activation x_BTX by `function(x_BTX)` inside a block."""
        layer, head = self.layer, self.head
        if layer is None or head is None:
            return replacing_output(model.get_submodule(self.module), function)

        def replace(heads_BHTE: Tensor) -> Tensor:
            heads = list(heads_BHTE.unbind(1))
            heads[head] = function(heads[head])
            return torch.stack(heads, 1)

        return replacing_heads(model, layer, replace)


@contextmanager
def ablating(
    model: Model,
    targets: str | Target | Iterable[str | Target],
    method: Method = "zero",
    *,
    reference_NS: Tensor | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Ablate parts of the model in every forward pass inside the block.

    The methods mean and resample take their values from `reference_NS`, windows of token ids. A window that begins with
    the tokens of the pass is never drawn for it. The draws are a function of the seed and of the passes in the block.
    """
    require(method in METHODS, "method", method, " or ".join(METHODS))
    found = targets_of(model.config, targets)
    places = list(dict.fromkeys(place for target in found for place in places_of(model, target)))
    if method != "zero" and (reference_NS is None or reference_NS.dim() != 2 or reference_NS.numel() == 0):
        raise ConfigError(f"method={show(method)} needs reference windows: token ids of shape (N, S)")
    source = Source(method, seed)
    if reference_NS is not None and method != "zero":
        source.read(model, places, reference_NS.to(model.token_embedding.weight.device))
    with ExitStack() as stack:
        if places:
            stack.enter_context(before_forward(model, source.begin))
        for place in places:
            stack.enter_context(place.replacing(model, source.replacement(place)))
        yield


class Source:
    """Values that take the place of activations, by one method."""

    def __init__(self, method: Method, seed: int):
        self.method = method
        self._generator = np.random.default_rng(seed)
        self._values: dict[Place, Tensor] = {}  # mean_X, or x_NSX
        self._reference_NS = torch.empty(0, 0, dtype=torch.int64)
        self._start, self._rows_B = 0, torch.empty(0, dtype=torch.int64)

    def read(self, model: Model, places: list[Place], reference_NS: Tensor) -> None:
        """Run the model on the reference windows, and keep what it computes at each place."""
        found: dict[Place, list[Tensor]] = {place: [] for place in places}

        def keep(place: Place) -> Callable[[Tensor], Tensor]:
            def function(x_BTX: Tensor) -> Tensor:
                found[place].append(x_BTX.mean((0, 1)) * len(x_BTX) if self.method == "mean" else x_BTX.clone())
                return x_BTX

            return function

        with ExitStack() as stack, inference(model):
            for place in found:
                stack.enter_context(place.replacing(model, keep(place)))
            for tokens_BS in reference_NS.split(REFERENCE_BATCH):
                model(tokens_BS[:, : model.config.block_size])
        for place, parts in found.items():
            if self.method == "mean":
                self._values[place] = torch.stack(parts).sum(0) / len(reference_NS)
            else:
                self._values[place] = torch.cat(parts)
        self._reference_NS = reference_NS

    def begin(self, tokens_BT: Tensor, cache: Any = None) -> None:
        """Note where the tokens of a pass stand, and draw another window for each row."""
        self._start = 0 if cache is None else cache.length
        if self.method != "resample":
            return
        start, T = self._start, tokens_BT.size(1)
        longest = min(self._reference_NS.size(1), *(len(x_NSX[0]) for x_NSX in self._values.values()))
        if start + T > longest:
            raise ConfigError(f"{start + T} tokens cannot be resampled from reference windows of {longest} tokens")
        same_BN = (tokens_BT[:, None] == self._reference_NS[:, start : start + T]).all(-1).cpu().numpy()
        if same_BN.all(1).any():
            raise ConfigError("every reference window equals the text that is to be resampled: give other windows")
        rows = [self._generator.choice(np.flatnonzero(~same_N)) for same_N in same_BN]
        self._rows_B = torch.tensor(rows, device=tokens_BT.device)

    def replacement(self, place: Place) -> Callable[[Tensor], Tensor]:
        """Return the function that replaces the activation of a place."""

        def replace(x_BTX: Tensor) -> Tensor:
            if self.method == "zero":
                new_BTX = torch.zeros_like(x_BTX)
            elif self.method == "mean":
                new_BTX = self._values[place].expand_as(x_BTX)
            else:
                new_BTX = self._values[place][self._rows_B, self._start : self._start + x_BTX.size(1)]
            if place.position is None:
                return new_BTX
            here_T = torch.arange(self._start, self._start + x_BTX.size(1), device=x_BTX.device) == place.position
            return torch.where(here_T[:, None], new_BTX, x_BTX)

        return replace


def places_of(model: Model, target: Target) -> list[Place]:
    """Return the activations that a target consists of."""
    if isinstance(target, Head):
        attention_of(model, target.layer)  # ConfigError for a block that has none
        return [Place(f"blocks.{target.layer}.attention", target.layer, target.head)]
    if isinstance(target, Position):
        return [Place("token_embedding", position=target.position)]
    if isinstance(target, NGrams):
        tables: Any = model.get_submodule("ngram_embedding.tables")
        return [Place(f"ngram_embedding.tables.{index}") for index in range(len(tables))]
    return [Place(f"blocks.{target.layer}.{part}") for part in parts_of(model, target)]


def parts_of(model: Model, target: Target) -> list[str]:
    """Return the names of the submodules of a block that a layer's target removes; ConfigError if it has none."""
    wanted = ["attention", "feed_forward"]
    if isinstance(target, AttentionLayer):
        wanted = ["attention"]
    elif isinstance(target, FeedForwardLayer):
        wanted = ["feed_forward"]
    block = model.blocks[target.layer]  # type: ignore[union-attr]
    parts = [part for part in wanted if isinstance(getattr(block, part, None), nn.Module)]
    if not parts:
        raise ConfigError(f"{target} cannot be ablated: the block is {show(type(block).__name__)}, which lacks it")
    return parts


@contextmanager
def editing_weights(model: Model, targets: str | Target | Iterable[str | Target]) -> Iterator[None]:
    """Set the weights of the targets to 0 inside the block, and restore them afterwards.

    The logits are those of zero ablation, in every engine that reads the weights inside the block. A position has no
    weights of its own and is a ConfigError.
    """
    targets = targets_of(model.config, targets)
    edits = [edit for target in targets for edit in weights_of(model, target)]
    kept = [(parameter, parameter.detach().clone()) for parameter in dict.fromkeys(each for each, _ in edits)]
    try:
        zero_weights(model, targets)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)


def zero_weights(model: Model, targets: str | Target | Iterable[str | Target]) -> None:
    """Set the weights of the targets to 0 for good, as `editing_weights` does inside a block."""
    edits = [edit for target in targets_of(model.config, targets) for edit in weights_of(model, target)]
    with torch.no_grad():
        for parameter, columns in edits:
            parameter[..., columns] = 0


def weights_of(model: Model, target: Target) -> list[tuple[nn.Parameter, slice]]:
    """Return the parameters of a target, each with the columns that are its own."""
    if isinstance(target, Position):
        raise ConfigError(f"{target} has no weights of its own: ablate it by hooks")
    if isinstance(target, NGrams):
        tables: Any = model.get_submodule("ngram_embedding.tables")
        return [(table.weight, slice(None)) for table in tables]
    if isinstance(target, Head):
        attention: Any = attention_of(model, target.layer)
        size = model.config.n_embd // model.config.n_head
        return [(attention.output.weight, slice(target.head * size, (target.head + 1) * size))]
    outputs = [model.get_submodule(f"blocks.{target.layer}.{part}.output") for part in parts_of(model, target)]
    return [(parameter, slice(None)) for output in outputs for parameter in output.parameters()]


@contextmanager
def before_forward(module: nn.Module, function: Callable[..., None]) -> Iterator[None]:
    """Call `function` with the arguments of a module before each of its forward passes inside the block."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        function(*inputs, **named)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
