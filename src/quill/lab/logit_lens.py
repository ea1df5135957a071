"""Logit lens and tuned lens: what the model would predict if it stopped after a layer.

The logit lens applies the final norm and head to the residual stream of a layer (nostalgebraist 2020, "interpreting
GPT: the logit lens"). Earlier layers use other directions than the last one, so the tuned lens first applies an affine
map, trained for each layer to predict what the model itself predicts at its end (tuned_lens.py).

Shapes: R readings (after the embedding and after each block), T time, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quill.errors import ConfigError
from quill.lab.finding import Finding
from quill.lab.residual import unembed
from quill.lab.subject import Subject, Text, labels_of
from quill.lab.trace import trace
from quill.model.build import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Translator(Protocol):
    """Maps the residual stream of a layer to that of the last one. A tuned lens is one."""

    def translate(self, x_BTD: Tensor, reading: int) -> Tensor:
        """Return the translated residual stream; `reading` 0 is the embedding, r is after block r - 1."""
        ...


@dataclass(frozen=True)
class Lens(Finding):
    """What each layer would predict at each position of a text."""

    tuned: bool
    labels: list[str]
    """the text of each token"""
    vocabulary: list[str]
    """the text of each token id"""
    best_RT: np.ndarray
    """id of the likeliest next token, by reading and position"""
    probability_RT: np.ndarray
    """its probability"""
    loss_RT: np.ndarray
    """-ln p of the token that follows in the text, in nats; T - 1 columns"""
    rank_RT: np.ndarray
    """rank of that token, 1 for the likeliest; T - 1 columns"""
    kl_RT: np.ndarray
    """KL divergence of the model's own prediction from that of the layer, in nats"""

    @property
    def title(self) -> str:  # type: ignore[override]
        """What is shown, in a line."""
        return f"{'Tuned' if self.tuned else 'Logit'} lens: what each layer would predict"

    @property
    def explanation(self) -> str:  # type: ignore[override]
        """How it is computed and read."""
        how = "an affine map trained for the layer, then " if self.tuned else ""
        return (
            f"Each cell is the next token that the model would write if it stopped after this layer: {how}the final"
            " norm and the head, applied to the residual stream. The colour is its probability. The top row is"
            " the model itself."
        )

    @property
    def readings(self) -> list[str]:
        """The name of each reading."""
        return ["embedding", *(f"block {layer}" for layer in range(len(self.best_RT) - 1))]

    @property
    def predicted(self) -> list[list[str]]:
        """The text of the likeliest next token, by reading and position."""
        return [[self.vocabulary[token] for token in row] for row in self.best_RT.tolist()]

    def numbers(self) -> dict[str, Any]:
        """Return predictions and measures of each layer."""
        means = {
            name: dict(zip(self.readings, np.round(values_RT.mean(1), 5).tolist(), strict=True))
            for name, values_RT in (("loss", self.loss_RT), ("rank", self.rank_RT), ("kl_to_final", self.kl_RT))
            if values_RT.shape[1]
        }
        return {
            "tuned": self.tuned, "tokens": self.labels, "mean_by_layer": means, "predicted": self.predicted,
            "probability": np.round(self.probability_RT.astype(np.float64), 4),
            "kl": np.round(self.kl_RT.astype(np.float64), 4),
        }  # fmt: skip

    def figure(self) -> Figure:
        """Return the grid of predictions, the last layer on top."""
        from quill.lab.drawing.lens import draw_lens

        return draw_lens(self.predicted, self.probability_RT, self.labels, self.readings, self.title)

    def __repr__(self) -> str:
        return f"{self.title} ({len(self.labels)} tokens)"


def lens(subject: Subject, text: Text, *, tuned: Translator | None = None) -> Lens:
    """Return what each layer would predict at each position of one text; `tuned` is a trained lens."""
    found = trace(subject, text, ["embedding_*", "blocks.*.output_*", "logits_*"])
    if found.tokens.ndim != 1:
        raise ConfigError("a lens looks at one text: give text, or token ids of shape (T,)")
    n_layer = subject.model.config.n_layer
    streams = [found["embedding_TD"], *(found[f"blocks.{layer}.output_TD"] for layer in range(n_layer))]
    logits_RTV = lens_logits(subject.model, torch.from_numpy(np.stack(streams)), tuned)
    logs_RTV = F.log_softmax(logits_RTV.double(), -1)
    final_TV = logs_RTV[-1]
    kl_RT = (final_TV.exp() * (final_TV - logs_RTV)).sum(-1)
    right_T1 = torch.from_numpy(found.tokens[1:]).to(logs_RTV.device)[:, None].expand(n_layer + 1, -1, 1)
    right_RT = logs_RTV[:, :-1].gather(-1, right_T1)
    probability_RT, best_RT = logs_RTV.exp().max(-1)
    return Lens(
        tuned=tuned is not None,
        labels=found.labels,
        vocabulary=labels_of(subject, range(subject.model.config.vocab_size)),
        best_RT=best_RT.cpu().numpy(),
        probability_RT=probability_RT.cpu().numpy(),
        loss_RT=-right_RT[..., 0].cpu().numpy(),
        rank_RT=(logs_RTV[:, :-1] > right_RT).sum(-1).cpu().numpy() + 1,
        kl_RT=kl_RT.clamp_min(0).cpu().numpy(),
    )


def lens_logits(model: Model, x_RTD: Tensor, tuned: Translator | None = None) -> Tensor:
    """Return logits_RTV of the readings of a residual stream; with a tuned lens, translated first but for the last."""
    x_RTD = x_RTD.to(model.token_embedding.weight)
    if tuned is not None:
        last = len(x_RTD) - 1
        with torch.no_grad():
            x_RTD = torch.stack([tuned.translate(x, r) if r < last else x for r, x in enumerate(x_RTD)])
    return unembed(model, x_RTD)
