"""Activation patching: which activation carries what distinguishes two texts.

The model runs on the corrupted text with a single activation taken from its run on the clean one. The score is the
share of the difference between two logits that this restores:

    share = (d_patched - d_corrupted) / (d_clean - d_corrupted)       d = logit of answer 1 - logit of answer 2

Meng et al. 2022, "Locating and Editing Factual Associations in GPT"; Zhang & Nanda 2023, "Towards Best Practices of
Activation Patching". The modern model adds its first embedding x₀ to the input of every block, so what is patched into
the residual stream at one layer leaves the x₀ of the corrupted text in the layers after it.

Shapes: R rows (one activation patched in each), L layers, T positions, H heads, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from quill.errors import ConfigError
from quill.lab.drawing.patching import draw_patching
from quill.lab.finding import Finding
from quill.lab.hooks import replacing_heads, replacing_input, replacing_output
from quill.lab.subject import Subject, Text, attention_of, check_position, check_token, inference, labels_of, tokens_of
from quill.model.build import Model
from quill.validation import require, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["residual", "attention", "feed_forward", "head"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ROWS = 64
"""Patched texts computed at once."""


@dataclass(frozen=True)
class Patching(Finding):
    """The share of a difference of logits that each activation of the clean text restores in the corrupted one."""

    clean: list[str]
    corrupted: list[str]
    answers: tuple[str, str]
    position: int
    """where the answer is predicted"""
    difference_clean: float
    """logit of the first answer minus that of the second"""
    difference_corrupted: float
    shares: dict[Kind, np.ndarray] = field(repr=False)
    """residual (L + 1, T): the input of each block and the final norm; attention, feed_forward (L, T); head (L, H)"""

    title = "What carries the difference between two texts"
    explanation = (
        "The model reads the corrupted text, and one activation is taken from its run on the clean text: the residual "
        "stream at one layer and position, the output of an attention layer or a feed-forward network at one position, "
        "or that of one head at all positions. The colour is the share of the difference between the logits of the two "
        "answers that this restores: 1 is as on the clean text, 0 as on the corrupted one, below 0 further away."
    )

    def numbers(self) -> dict[str, Any]:
        return {
            "clean": self.clean, "corrupted": self.corrupted, "answers": self.answers, "position": self.position,
            "difference_clean": self.difference_clean, "difference_corrupted": self.difference_corrupted,
            "shares": self.shares,
        }  # fmt: skip

    def figure(self) -> Figure:
        first, second = self.answers
        about = f"d = logit of {first!r} - logit of {second!r}: clean {self.difference_clean:+.2f}"
        title = f"{self.title}\n{about}, corrupted {self.difference_corrupted:+.2f}"
        return draw_patching(
            {str(kind): share for kind, share in self.shares.items()}, self.clean, self.corrupted, title
        )


def patch(
    subject: Subject,
    clean: Text,
    corrupted: Text,
    *,
    answers: tuple[int | str, int | str] | None = None,
    position: int = -1,
    kinds: Sequence[Kind] = KINDS,
) -> Patching:
    """Patch activations of the clean text into the corrupted one, one at a time.

    Both texts have the same number of tokens. `answers` are two tokens, the first one right after the clean text; by
    default the likeliest ones after the clean and after the corrupted text. Texts that cannot be compared are a
    ConfigError.
    """
    clean_T, corrupted_T = tokens_of(subject, clean), tokens_of(subject, corrupted)
    if clean_T.dim() != 1 or clean_T.shape != corrupted_T.shape:
        sizes = f"{tuple(clean_T.shape)} and {tuple(corrupted_T.shape)}"
        raise ConfigError(f"texts of shapes {sizes} cannot be patched: give two texts of the same number of tokens")
    for kind in kinds:
        require(kind in KINDS, "kind", kind, " or ".join(KINDS))
    model, position = subject.model, check_position(position, len(clean_T))
    with inference(model):
        logits_2V = model(torch.stack([clean_T, corrupted_T]))[:, position]
    best = logits_2V.argmax(-1).tolist()
    first, second = (check_token(subject, each) for each in answers) if answers is not None else best
    names = labels_of(subject, [first, second])
    difference_clean, difference_corrupted = (logits_2V[:, first] - logits_2V[:, second]).tolist()
    if first == second or difference_clean == difference_corrupted:
        raise ConfigError(
            f"the answers {show(names[0])} and {show(names[1])} do not tell the texts apart: name two tokens as answers"
        )
    shares: dict[Kind, np.ndarray] = {}
    for kind in kinds:
        patched = patched_logits(model, kind, clean_T, corrupted_T, position)
        difference = patched[..., first] - patched[..., second]
        shares[kind] = (difference - difference_corrupted) / (difference_clean - difference_corrupted)
    labels = labels_of(subject, clean_T), labels_of(subject, corrupted_T)
    return Patching(*labels, (names[0], names[1]), position, difference_clean, difference_corrupted, shares)


def patched_logits(model: Model, kind: Kind, clean_T: Tensor, corrupted_T: Tensor, position: int) -> np.ndarray:
    """Return the logits at a position for each patched activation: (layers, positions or heads, V)."""
    config, layers = model.config, []
    count = config.n_head if kind == "head" else len(clean_T)
    for layer in range(config.n_layer + (kind == "residual")):
        replacing = place_of(model, kind, layer)
        clean_TX = activation(model, replacing, clean_T)
        rows = [
            one_batch(model, replacing, clean_TX, corrupted_T, indices)[:, position]
            for indices in torch.arange(count, device=clean_T.device).split(ROWS)
        ]
        layers.append(torch.cat(rows).double().cpu().numpy())
    return np.stack(layers)


Replacing = Callable[[Callable[[Tensor], Tensor]], AbstractContextManager[None]]


def place_of(model: Model, kind: Kind, layer: int) -> Replacing:
    """Return the context manager that replaces an activation by a function of it."""
    if kind == "residual":
        module: nn.Module = model.blocks[layer] if layer < model.config.n_layer else model.final_norm
        return lambda function: replacing_input(module, function)
    if kind == "head":
        attention_of(model, layer)  # ConfigError for a block that has none
        return lambda function: replacing_heads(model, layer, function)
    part = getattr(model.blocks[layer], kind, None)
    if part is None:
        raise ConfigError(f"block {layer} is {show(type(model.blocks[layer]).__name__)}, which has no {kind}")
    return lambda function: replacing_output(part, function)


def activation(model: Model, replacing: Replacing, tokens_T: Tensor) -> Tensor:
    """Return an activation of one text, without its batch dimension."""
    found = []

    def keep(x: Tensor) -> Tensor:
        found.append(x[0].clone())
        return x

    with inference(model), replacing(keep):
        model(tokens_T[None])
    return found[0]


def one_batch(model: Model, replacing: Replacing, clean_TX: Tensor, corrupted_T: Tensor, indices_R: Tensor) -> Tensor:
    """Return logits_RTV of the corrupted text; row r has position (or head) indices_R[r] of the clean activation."""

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        rows_R = torch.arange(len(indices_R), device=x.device)
        x[rows_R, indices_R] = clean_TX[indices_R]  # heads (R, H, T, E) and streams (R, T, D): the second dimension
        return x

    with inference(model), replacing(put):
        return model(corrupted_T.repeat(len(indices_R), 1))
