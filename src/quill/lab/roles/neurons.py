"""Neuron cards: what activates a neuron of a feed-forward network, and which tokens it then makes likelier.

A neuron f is a row of `hidden.weight`, which reads the residual stream (its key), and a column of `output.weight`,
which is added to it in proportion to the activation (its value). What the value says by itself is
head(final_norm(value)), less head(final_norm(0)), which differs from 0 if there are biases. Geva et al. 2021,
"Transformer Feed-Forward Layers Are Key-Value Memories".

Agreement of a neuron is the share of its top contexts that are followed by one of the tokens that its value raises
most. The control pairs the contexts of each neuron with the value of another: what is left is agreement by chance and
by frequency.

Shapes: N windows, T time, F neurons, D width, V vocabulary, K top contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quill.errors import ConfigError
from quill.lab.ablation.cost import text_windows
from quill.lab.drawing.neurons import draw_cards
from quill.lab.finding import Finding
from quill.lab.statistics import Interval, bootstrap_interval, paired_difference
from quill.lab.subject import Subject, Text, check_layer, inference, labels_of
from quill.lab.trace import record
from quill.model.build import Model
from quill.validation import require, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 8


@dataclass(frozen=True)
class Card:
    """One neuron."""

    layer: int
    neuron: int
    contexts: list[tuple[str, str, float]]
    """text up to the token that activates the neuron, the token that follows, the activation; the strongest first"""
    raised: list[tuple[str, float]]
    """tokens that the value vector makes likelier, with the logits that it adds by itself"""
    lowered: list[tuple[str, float]]
    agreement: float
    """share of the contexts that are followed by one of the raised tokens"""


@dataclass(frozen=True)
class NeuronCards(Finding):
    """Cards of the neurons of a layer, and how often what they raise is what follows."""

    layer: int
    cards: list[Card]
    agreement_F: np.ndarray = field(repr=False)
    """of every neuron of the layer"""
    shuffled_F: np.ndarray = field(repr=False)
    """the same with the value vector of another neuron"""
    agreement: Interval
    shuffled: Interval
    difference: Interval
    """agreement minus that of shuffled neurons"""
    seed: int = 0

    title = "Neurons: what activates them, and what they make likelier"
    explanation = (
        "For each neuron, the places in a text that activate it most (one from each window), and the tokens that its "
        "value vector raises and lowers by itself. Agreement is the share of its contexts that a raised token follows; "
        "shuffled neurons (contexts of one, value of another) are the control. Unless neurons are named, the "
        "cards show those whose activation, times the size of their value, is largest: not a random choice."
    )

    def numbers(self) -> dict[str, Any]:
        return {
            "layer": self.layer, "seed": self.seed, "neurons": len(self.agreement_F), "agreement": self.agreement,
            "agreement_of_shuffled": self.shuffled, "difference": self.difference, "cards": self.cards,
        }  # fmt: skip

    def figure(self) -> Figure:
        found = f"agreement {100 * self.agreement.mean:.0f} %, shuffled neurons {100 * self.shuffled.mean:.0f} %"
        cards = [
            (f"neuron {card.layer}.{card.neuron}", card.contexts, card.raised, card.lowered) for card in self.cards
        ]
        return draw_cards(
            cards, title=f"{self.title}\nall {len(self.agreement_F)} neurons of layer {self.layer}: {found}"
        )


def neuron_cards(
    subject: Subject,
    text: Text,
    layer: int,
    *,
    neurons: Sequence[int] | None = None,
    count: int = 6,
    contexts: int = 5,
    tokens: int = 5,
    windows: int = 64,
    context_length: int = 24,
    seed: int = 0,
) -> NeuronCards:
    """Make cards of some neurons of a layer: those named, or the `count` that add most to the residual stream.

    `contexts` places and `tokens` tokens are on a card; `context_length` tokens are shown of a place.
    """
    model, config = subject.model, subject.model.config
    check_layer(config, layer)
    for name, value in (
        ("count", count),
        ("contexts", contexts),
        ("tokens", tokens),
        ("context_length", context_length),
    ):
        require(type(value) is int and 1 <= value <= 1000, name, value, "from 1 to 1000")
    values_FD = value_vectors(model, layer)
    tokens_NT = text_windows(subject, text, windows)
    strongest_NF, where_NF = strongest_activations(model, layer, tokens_NT)
    top_KF = np.argsort(-strongest_NF, axis=0, kind="stable")[:contexts]
    logits_FV = what_values_say(model, values_FD)
    tokens = min(tokens, config.vocab_size)
    order_FV = np.argsort(-logits_FV, axis=1, kind="stable")
    followers_KF = tokens_NT.numpy()[top_KF, np.take_along_axis(where_NF, top_KF, 0) + 1]
    agreement_F = agreement(followers_KF, order_FV[:, :tokens])
    other_F = shuffled(len(values_FD), seed)
    shuffled_F = agreement(followers_KF, order_FV[other_F, :tokens])
    if neurons is None:
        size_F = strongest_NF.max(0) * values_FD.norm(dim=1).cpu().numpy()
        neurons = [int(neuron) for neuron in np.argsort(-size_F, kind="stable")[:count]]
    for neuron in neurons:
        good = type(neuron) is int and 0 <= neuron < len(values_FD)
        require(good, "neuron", neuron, f"from 0 to {len(values_FD) - 1}: each layer has {len(values_FD)} neurons")

    def card(neuron: int) -> Card:
        places = []
        for window in top_KF[:, neuron]:
            end = int(where_NF[window, neuron]) + 1
            labels = labels_of(subject, tokens_NT[window, max(0, end - context_length) : end + 1])
            places.append(("".join(labels[:-1]), labels[-1], float(strongest_NF[window, neuron])))
        ordered = order_FV[neuron]
        said = list(zip(labels_of(subject, ordered), logits_FV[neuron, ordered].tolist(), strict=True))
        return Card(layer, neuron, places, said[:tokens], said[::-1][:tokens], float(agreement_F[neuron]))

    return NeuronCards(
        layer,
        [card(neuron) for neuron in neurons],
        agreement_F,
        shuffled_F,
        bootstrap_interval(agreement_F, seed=seed),
        bootstrap_interval(shuffled_F, seed=seed),
        paired_difference(agreement_F, shuffled_F, seed=seed),
        seed,
    )


class Strongest:
    """A recorder of the strongest activation of each neuron in each window, and of its place."""

    def __init__(self, layer: int):
        self._name = f"blocks.{layer}.feed_forward.hidden_BTF"
        self.values: list[np.ndarray] = []
        self.places: list[np.ndarray] = []

    def wants(self, name: str) -> bool:
        """Say whether to compute an activation that the model itself does not: none."""
        return False

    def add(self, name: str, tensor: Tensor) -> None:
        """Receive an activation."""
        if name == self._name:
            strongest = tensor.max(1)
            self.values.append(strongest.values.float().cpu().numpy())
            self.places.append(strongest.indices.cpu().numpy())


def strongest_activations(model: Model, layer: int, tokens_NT: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return strongest_NF and where_NF, the position of it. The last token of a window is only a follower."""
    found = Strongest(layer)
    for tokens_BT in tokens_NT.to(model.token_embedding.weight.device).split(BATCH):
        record(model, tokens_BT[:, :-1], found)
    return np.concatenate(found.values), np.concatenate(found.places)


def value_vectors(model: Model, layer: int) -> Tensor:
    """Return values_FD, the columns of the output projection; ConfigError for a block that has none."""
    output = getattr(getattr(model.blocks[layer], "feed_forward", None), "output", None)
    if output is None:
        raise ConfigError(f"block {layer} is {show(type(model.blocks[layer]).__name__)}, which has no neurons")
    return output.weight.detach().T


def what_values_say(model: Model, values_FD: Tensor) -> np.ndarray:
    """Return logits_FV of each value vector by itself, less those of a zero vector, with a mean of 0."""
    with inference(model):
        zero_1D = torch.zeros_like(values_FD[:1])
        logits_FV = model.head(model.final_norm(values_FD)) - model.head(model.final_norm(zero_1D))
    return (logits_FV - logits_FV.mean(1, keepdim=True)).double().cpu().numpy()


def agreement(followers_KF: np.ndarray, raised_FK: np.ndarray) -> np.ndarray:
    """Return agreement_F: the share of followers that are among the raised tokens of their neuron."""
    return (followers_KF.T[:, :, None] == raised_FK[:, None, :]).any(2).mean(1)


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return a permutation that leaves no neuron in its place (for two or more)."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)  # a single cycle
    return other
