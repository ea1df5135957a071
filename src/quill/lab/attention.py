"""Attention maps, and two corrections of them: rollout, which follows several layers, and value-weighted attention.

A weight says how much a token attends to another. It does not say how large the value is that it reads, nor what that
token had read itself in earlier layers.

Shapes: L layers, H heads, T time (queries), S time (keys), D width, E size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quill.errors import ConfigError
from quill.lab.finding import Finding
from quill.lab.subject import Subject, Text, attention_of, check_head, check_layer
from quill.lab.trace import Trace, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["weights", "value-weighted", "rollout"]
EXPLANATIONS: dict[str, str] = {
    "weights": "Row t shows how much token t attends to each token s up to itself. A row sums to 1.",
    "value-weighted": (
        "Row t shows the size of what token t reads from each token s: the attention weight times the length of the"
        " value after the output projection (Kobayashi et al. 2020), as a share of the row."
    ),
    "rollout": (
        "Row t shows the share of each token s in position t after a layer, if the average head and the residual"
        " connection count for one half each (Abnar & Zuidema 2020). A row sums to 1."
    ),
}


@dataclass(frozen=True)
class AttentionMaps(Finding):
    """The attention of a text in every head, or for rollout in every layer."""

    kind: Kind
    labels: list[str]
    """the text of each token"""
    maps: dict[str, np.ndarray]
    """map_TS by the name of the head ("0.3": layer 0, head 3) or layer ("0"); rows sum to 1"""

    @property
    def title(self) -> str:  # type: ignore[override]
        """What is shown, in a line."""
        what = {"weights": "Attention", "value-weighted": "Value-weighted attention", "rollout": "Attention rollout"}
        part = "layer" if self.kind == "rollout" else "head"
        names, layers = list(self.maps), {name.partition(".")[0] for name in self.maps}
        if len(names) == 1:
            return f"{what[self.kind]} of {part} {names[0]}"
        within = f" of layer {layers.pop()}" if len(layers) == 1 else ""
        return f"{what[self.kind]} of every {part}{within}"

    @property
    def explanation(self) -> str:  # type: ignore[override]
        """How it is computed and read."""
        return EXPLANATIONS[self.kind]

    def numbers(self) -> dict[str, Any]:
        """Return the maps in ten-thousandths; row t has the t + 1 tokens that it may see."""
        maps = {}
        for name, map_TS in self.maps.items():
            maps[name] = [row_S[: t + 1] for t, row_S in enumerate(np.rint(map_TS * 10_000).astype(int))]
        return {"kind": self.kind, "tokens": self.labels, "unit": 0.0001, "maps": maps}

    def figure(self) -> Figure:
        """Return one large map, or a grid of small ones."""
        from quill.lab.drawing.maps import draw_map, draw_map_grid

        if len(self.maps) == 1:
            return draw_map(next(iter(self.maps.values())), self.labels, self.title)
        return draw_map_grid(self.maps, self.labels, self.title)

    def __repr__(self) -> str:
        return f"{self.title}: {len(self.maps)} maps of {len(self.labels)} tokens"


def attention_maps(
    subject: Subject, text: Text, *, layer: int | None = None, head: int | None = None, kind: Kind = "weights"
) -> AttentionMaps:
    """Return the attention of one text, in all heads or in those of a layer or in one head.

    `kind` is weights, value-weighted or rollout; rollout has no heads. What does not exist is a ConfigError.
    """
    config = subject.model.config
    if kind not in EXPLANATIONS:
        raise ConfigError(f"kind={kind!r} is none of {', '.join(EXPLANATIONS)}")
    if layer is not None:
        check_layer(config, layer)
    if head is not None:
        if kind == "rollout":
            raise ConfigError("rollout averages over the heads: leave out head")
        check_head(config, layer if layer is not None else 0, head)
        layer = layer if layer is not None else 0
    found = trace(subject, text, ["*.attention.weights_*", "*.attention.v_*"])
    if found.tokens.ndim != 1:
        raise ConfigError("attention maps are of one text: give text, or token ids of shape (T,)")
    layers = range(config.n_layer) if layer is None else [layer]
    if kind == "rollout":
        rolled_LTS = rollout(weights_LHTS(found, config.n_layer))
        return AttentionMaps(kind, found.labels, {str(each): rolled_LTS[each] for each in layers})
    heads = range(config.n_head) if head is None else [head]
    maps = {}
    for each in layers:
        map_HTS = found[f"blocks.{each}.attention.weights_HTS"]
        if kind == "value-weighted":
            map_HTS = value_weighted(subject, found, each)
        maps |= {f"{each}.{h}": map_HTS[h] for h in heads}
    return AttentionMaps(kind, found.labels, maps)


def packed_triangle(weights_XTS: np.ndarray) -> np.ndarray:
    """Return packed_XN, uint8: 255 · √weight of the lower triangle, row by row. Small weights keep more precision."""
    t, s = np.tril_indices(weights_XTS.shape[-1])
    return np.round(255 * np.sqrt(weights_XTS[..., t, s])).astype(np.uint8)


def weights_LHTS(found: Trace, n_layer: int) -> np.ndarray:
    """Return the attention weights of all layers of a trace of one text."""
    return np.stack([found[f"blocks.{layer}.attention.weights_HTS"] for layer in range(n_layer)])


def rollout(weights_LHTS: np.ndarray) -> np.ndarray:
    """Return rolled_LTS: the share of token s in position t after each layer.

    R₀ = A₀,  R_l = A_l R_{l-1}  with  A_l = ½ mean over heads + ½ I  (Abnar & Zuidema 2020, section 3).
    """
    mixed_LTS = 0.5 * weights_LHTS.mean(1) + 0.5 * np.eye(weights_LHTS.shape[-1], dtype=weights_LHTS.dtype)
    rolled = [mixed_LTS[0]]
    for mixed_TS in mixed_LTS[1:]:
        rolled.append(mixed_TS @ rolled[-1])
    return np.stack(rolled)


def value_sizes(subject: Subject, found: Trace, layer: int) -> np.ndarray:
    """Return sizes_HS: the length of each head's value of token s after the output projection, ‖v_s W_O‖."""
    attention: Any = attention_of(subject.model, layer)
    v_HSE = found[f"blocks.{layer}.attention.v_HSE"]
    weight_DD = attention.output.weight.detach().float().cpu().numpy()
    E = v_HSE.shape[-1]
    written = [v_SE @ weight_DD[:, h * E : (h + 1) * E].T for h, v_SE in enumerate(v_HSE)]
    return np.linalg.norm(np.stack(written), axis=-1)


def value_weighted(subject: Subject, found: Trace, layer: int) -> np.ndarray:
    """Return share_HTS: attention times the size of the projected value, as a share of its row.

    Kobayashi et al. 2020, "Attention is Not Only a Weight", section 3.
    """
    sizes_HTS = found[f"blocks.{layer}.attention.weights_HTS"] * value_sizes(subject, found, layer)[:, None, :]
    return sizes_HTS / np.maximum(sizes_HTS.sum(-1, keepdims=True), 1e-30)
