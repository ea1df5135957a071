"""Parts of a model that can be ablated, with the text form that the command line takes.

head:0.3         head 3 of layer 0
attention:1      what the attention of layer 1 adds to the residual stream
feed_forward:2   what the feed-forward network of layer 2 adds
block:0          both additions of block 0
position:17      the token embedding at position 17
ngrams           the n-gram tables of the modern model
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quill.errors import ConfigError
from quill.lab.subject import check_head, check_layer
from quill.model.config import ModelConfig, ModernConfig
from quill.validation import require, show


@dataclass(frozen=True, order=True)
class Head:
    """An attention head."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"head:{self.layer}.{self.head}"


@dataclass(frozen=True, order=True)
class AttentionLayer:
    """All that the attention of a layer adds to the residual stream, its bias included."""

    layer: int

    def __str__(self) -> str:
        return f"attention:{self.layer}"


@dataclass(frozen=True, order=True)
class FeedForwardLayer:
    """All that the feed-forward network of a layer adds to the residual stream, its bias included."""

    layer: int

    def __str__(self) -> str:
        return f"feed_forward:{self.layer}"


@dataclass(frozen=True, order=True)
class WholeBlock:
    """Both additions of a block to the residual stream."""

    layer: int

    def __str__(self) -> str:
        return f"block:{self.layer}"


@dataclass(frozen=True, order=True)
class Position:
    """The token embedding at a position. Position embeddings stay, and so do n-gram embeddings of the token."""

    position: int

    def __str__(self) -> str:
        return f"position:{self.position}"


@dataclass(frozen=True, order=True)
class NGrams:
    """The n-gram tables of the modern model."""

    def __str__(self) -> str:
        return "ngrams"


Target = Head | AttentionLayer | FeedForwardLayer | WholeBlock | Position | NGrams

LAYERS: dict[str, type[AttentionLayer | FeedForwardLayer | WholeBlock]] = {
    "attention": AttentionLayer,
    "feed_forward": FeedForwardLayer,
    "block": WholeBlock,
}
FORMS = "head:LAYER.HEAD, attention:LAYER, feed_forward:LAYER, block:LAYER, position:INDEX or ngrams"


def parse_target(text: str) -> Target:
    """Return the target that a text names, such as `head:0.3`; ConfigError for any other text."""
    kind, _, rest = text.strip().partition(":")
    numbers = rest.split(".")
    if kind == "ngrams" and not rest:
        return NGrams()
    if all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
        if kind == "head" and len(numbers) == 2:
            return Head(int(numbers[0]), int(numbers[1]))
        if kind in LAYERS and len(numbers) == 1:
            return LAYERS[kind](int(numbers[0]))
        if kind == "position" and len(numbers) == 1:
            return Position(int(numbers[0]))
    raise ConfigError(f"there is no target {show(text)}: it must be {FORMS}")


def targets_of(config: ModelConfig, targets: str | Target | Iterable[str | Target]) -> list[Target]:
    """Return the targets, checked against a model. A text may name several, separated by commas.

    A layer, head or position that the model lacks is a ConfigError.
    """
    if isinstance(targets, str):
        targets = [part for part in targets.split(",") if part.strip()]
    elif isinstance(targets, Target):
        targets = [targets]
    found = [parse_target(each) if isinstance(each, str) else each for each in targets]
    for target in found:
        check_target(config, target)
    return list(dict.fromkeys(found))


def check_target(config: ModelConfig, target: Target) -> None:
    """Raise ConfigError unless the model has this part."""
    if isinstance(target, Head):
        check_head(config, target.layer, target.head)
    elif isinstance(target, Position):
        good = type(target.position) is int and 0 <= target.position < config.block_size
        require(good, "position", target.position, f"from 0 to {config.block_size - 1}, the end of the model's context")
    elif isinstance(target, NGrams):
        if not isinstance(config, ModernConfig) or not config.ngram_sizes:
            raise ConfigError("the model has no n-gram tables to ablate")
    else:
        check_layer(config, target.layer)


def every_head(config: ModelConfig) -> list[Target]:
    """Return all heads, layer by layer."""
    return [Head(layer, head) for layer in range(config.n_layer) for head in range(config.n_head)]


def every_feed_forward(config: ModelConfig) -> list[Target]:
    """Return all feed-forward networks."""
    return [FeedForwardLayer(layer) for layer in range(config.n_layer)]
