"""The film of a run as a finding: what its model learnt, and when.

Shapes: F frames, L layers, H heads, R readings (after the embedding and after each block), T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quill.errors import ConfigError
from quill.files import expand_home
from quill.lab.drawing.film import FilmPicture, draw_film
from quill.lab.film.format import NAME, Frame, Frames, read_film
from quill.lab.finding import Finding
from quill.lab.roles.classify import best_offset, classify
from quill.lab.roles.patterns import CLASSES, POSITIONAL, Score, class_pattern, mass_by_offset
from quill.validation import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Film(Finding):
    """What a model computed for one text at some moments of its training."""

    frames: Frames = field(repr=False)
    layer: int | None = None
    """layer of the head that is drawn; with neither layer nor head, the one with the clearest role at the end"""
    head: int | None = None

    title = "A film of the training run"
    explanation = (
        "The same text was given to the model at some moments of its training; each is a dot or a column. The loss is"
        " that on the text; the other losses are those of the run's evaluations. The row of a layer in the lens shows"
        " at how many positions the model, if it stopped after that layer, would already predict what it predicts at"
        " its end. A head has a role if enough of its attention lies where a head of that role would look (0.3 on a"
        " scale from uniform attention to all of it); induction is measured on repeated random tokens. Samples use the"
        " same random numbers at every moment."
    )

    @property
    def steps(self) -> list[int]:
        """The step of each frame."""
        return self.frames.steps

    @property
    def text(self) -> str:
        """The probe text."""
        return self.frames.tokenizer.decode(self.frames.tokens_T.tolist())

    @property
    def labels(self) -> list[str]:
        """The text of each of its tokens."""
        return [self.frames.tokenizer.decode([int(token)]) for token in self.frames.tokens_T]

    @property
    def samples(self) -> list[str]:
        """What the model wrote at each frame."""
        return [self.frames.tokenizer.decode(frame.sample_G.tolist()) for frame in self.frames.frames]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of layers, and of heads in each."""
        return self.frames.frames[0].induction_LH.shape  # type: ignore[return-value]

    @property
    def probe_losses(self) -> list[float]:
        """The loss on the probe text at each frame, in nats per token."""
        return [float(frame.loss_RU[-1].astype(np.float64).mean()) for frame in self.frames.frames]

    @property
    def agreement_FR(self) -> np.ndarray:
        """Share of positions at which a layer already predicts what the model predicts at its end."""
        return np.stack([(frame.best_RT == frame.best_RT[-1]).mean(-1) for frame in self.frames.frames])

    @property
    def kl_FR(self) -> np.ndarray:
        """Mean KL divergence of the model's prediction from that of each layer, in nats."""
        return np.stack([frame.kl_RT.astype(np.float64).mean(-1) for frame in self.frames.frames])

    @cached_property
    def roles(self) -> list[tuple[list[list[str]], np.ndarray]]:
        """For each frame, the role of each head by layer, and strength_LH."""
        tokens_T, labels = self.frames.tokens_T, self.labels
        return [roles_of(frame, tokens_T, labels) for frame in self.frames.frames]

    @cached_property
    def shown(self) -> tuple[int | None, int | None]:
        """The layer and head that are drawn; None stands for the mean over them."""
        if self.layer is not None or self.head is not None:
            return self.layer, self.head
        roles, strength_LH = self.roles[-1]
        named_LH = np.where(np.array(roles) == "none", 0.0, strength_LH)
        layer, head = np.unravel_index(int(named_LH.argmax()), named_LH.shape)
        return (int(layer), int(head)) if named_LH.max() > 0 else (None, None)

    def attention_TS(self, frame: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """Return the attention weights of a head at a frame, or their mean over what is not named."""
        layers = slice(None) if layer is None else slice(layer, layer + 1)
        heads = slice(None) if head is None else slice(head, head + 1)
        attention_LHN = self.frames.frames[frame].attention_LHN[layers, heads]
        return triangle(attention_LHN.reshape(-1, attention_LHN.shape[-1])).mean(0)

    def numbers(self) -> dict[str, Any]:
        """Return losses, lens, roles and samples of each frame; attention is in the film's file."""
        return {
            "text": self.text,
            "steps": self.steps,
            "probe_loss": np.round(self.probe_losses, 5),
            "evaluations": [vars(frame.evaluation) for frame in self.frames.frames],
            "lens_agreement": np.round(self.agreement_FR, 4),
            "lens_kl": np.round(self.kl_FR, 4),
            "roles": [roles for roles, _ in self.roles],
            "role_strength": [np.round(strength_LH, 4) for _, strength_LH in self.roles],
            "induction": [np.round(frame.induction_LH.astype(np.float64), 4) for frame in self.frames.frames],
            "samples": self.samples,
            "shown_head": self.shown,
        }

    def figure(self) -> Figure:
        """Return losses, lens and roles over the steps, the attention of a head at six of them, and samples."""
        layer, head = self.shown
        L, H = self.shape
        role = "" if layer is None or head is None else f" (role at the end: {self.roles[-1][0][layer][head]})"
        which = "the mean over all heads" if layer is None and head is None else (
            f"the mean over the heads of layer {layer}" if head is None else f"head {layer}.{head}{role}"
        )  # fmt: skip
        at = evenly(len(self.steps), 6)
        evaluations = {frame.evaluation.step: frame.evaluation for frame in self.frames.frames}
        known = [each for step, each in evaluations.items() if step is not None]
        return draw_film(
            FilmPicture(
                title=self.title,
                text=self.text,
                steps=self.steps,
                probe_losses=self.probe_losses,
                guess=float(np.log(self.frames.tokenizer.vocab_size)),
                evaluations=[(e.step or 0, e.train_loss, e.val_loss) for e in known],
                readings=["embedding", *(f"block {layer}" for layer in range(L))],
                agreement_RF=self.agreement_FR.T,
                roles=[[roles[i // H][i % H] for roles, _ in self.roles] for i in range(L * H)],
                heads=[f"{i // H}.{i % H}" for i in range(L * H)],
                labels=self.labels,
                shown=which,
                maps=[(self.steps[i], self.attention_TS(i, layer, head)) for i in at],
                samples=[(self.steps[i], self.samples[i]) for i in at],
            )
        )

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.steps)} frames from step {self.steps[0]} to {self.steps[-1]}"


def load_film(out_dir: str | Path, *, layer: int | None = None, head: int | None = None) -> Film:
    """Return the film of a run. CheckpointError if it is missing or damaged; ConfigError for a head that is not there.

    `layer` and `head` choose whose attention is drawn; a layer alone stands for the mean over its heads.
    """
    film = Film(read_film(expand_home(out_dir) / NAME), layer, head)
    if head is not None and layer is None:
        raise ConfigError("head needs a layer: name both, or a layer alone for the mean over its heads")
    for name, value, count in zip(("layer", "head"), (layer, head), film.shape, strict=True):
        good = value is None or (type(value) is int and 0 <= value < count)
        require(good, name, value, f"from 0 to {count - 1}")
    return film


def triangle(attention_XN: np.ndarray) -> np.ndarray:
    """Return weights_XTS of maps that are stored as 255 · √weight of the lower triangle; rows sum to 1 again."""
    T = int((8 * attention_XN.shape[-1] + 1) ** 0.5) // 2
    weights_XTS = np.zeros((len(attention_XN), T, T))
    t, s = np.tril_indices(T)
    weights_XTS[:, t, s] = (attention_XN / 255.0) ** 2
    return weights_XTS / np.maximum(weights_XTS.sum(-1, keepdims=True), 1e-12)


def roles_of(frame: Frame, tokens_T: np.ndarray, labels: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """Return the role of each head by layer, and strength_LH, as in lab/roles but on the probe text alone."""
    L, H, N = frame.attention_LHN.shape
    weights_LHTS = triangle(frame.attention_LHN.reshape(L * H, N)).reshape(L, H, len(tokens_T), len(tokens_T))
    masks = {name: pattern(tokens_T) for name, pattern in POSITIONAL.items()}
    masks |= {name: class_pattern(labels, member) for name, member in CLASSES.items()}
    scores: dict[str, np.ndarray] = {}
    uniform: dict[str, float | np.ndarray] = {}
    for name, mask_TS in masks.items():
        score = Score(np.zeros((L, H)))
        score.add(weights_LHTS, mask_TS)
        scores[name], uniform[name] = score.mean_LH, score.uniform
    _, scores["fixed offset"], uniform["fixed offset"] = best_offset(mass_by_offset(weights_LHTS))
    scores["induction"], uniform["induction"] = frame.induction_LH.astype(np.float64), 0.0  # a strength already
    return classify(scores, uniform)


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
