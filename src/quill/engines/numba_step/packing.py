"""Pack a model's weights for the compiled step: panels of 64 outputs, in float32 or int8.

This happens once, when an engine is made. A panel is stored in the order in which it is read.

Sources: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", section 4 (packing); Dettmers
et al. 2022, "LLM.int8()", section 2.1 (a scale for each row).

Shapes: L layers, N outputs, C inputs, D width, H heads, K heads of keys and values, E size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from quill.engines.numba_step.workspace import (
    FEW,
    GELU,
    PANEL,
    RELU,
    RELU_SQUARED,
    ROWS_AT_ONCE,
    Matrix,
    Shape,
    Weights,
    Workspace,
)
from quill.model.config import QK_GAIN, GPTConfig, ModelConfig
from quill.model.rotary import rotary_frequencies

Arrays = Mapping[str, np.ndarray]

NONE = np.zeros(0, np.float32)


def pack_model(config: ModelConfig, arrays: Arrays, quantization: str | None) -> tuple[Shape, Weights]:
    """Return a model's sizes and its weights, float32 or int8, from arrays by their names in the model."""
    shape = shape_of(config)
    D = shape.width
    maps = ("attention.query_key_value", "attention.output", "feed_forward.hidden", "feed_forward.output")
    matrices = [pack(*stacked(arrays, name, shape.n_layer), quantization) for name in maps]
    head = arrays.get("head.weight", arrays["token_embedding.weight"])
    bias = arrays["head.bias"][None] if "head.bias" in arrays else None
    if not isinstance(config, GPTConfig):
        tables = [arrays[f"ngram_embedding.tables.{i}.weight"] for i in range(config.ngram - 1)]
        frequencies = np.array(rotary_frequencies(shape.head_size))
        angles_SE = np.arange(config.block_size)[:, None] * frequencies
        angles = [function(angles_SE).astype(np.float32).ravel() for function in (np.cos, np.sin)]
        angles.append(frequencies)
        positions, norms, embedding_skip = NONE, NONE, np.array(arrays["embedding_skip"])
    else:
        names = [f"blocks.{i}.{norm}" for i in range(shape.n_layer) for norm in ("attention_norm", "feed_forward_norm")]
        zeros = np.zeros(shape.n_embd, np.float32)
        pairs = [[arrays[f"{n}.weight"], arrays.get(f"{n}.bias", zeros)] for n in (*names, "final_norm")]
        tables, angles, embedding_skip = [], [NONE, NONE, np.zeros(0)], NONE
        positions, norms = pad(arrays["position_embedding.weight"], D), pad(np.array(pairs), D)
    ngrams = np.concatenate(tables) if tables else np.zeros((0, shape.n_embd), np.float32)
    ngram_scales = np.ones(len(ngrams), np.float32)
    if quantization == "int8":
        ngrams, ngram_scales = quantize(ngrams)
    return shape, Weights(
        token_embedding=pad(arrays["token_embedding.weight"], D),
        position_embedding=positions,
        norms=norms,
        query_key_value=matrices[0],
        attention_output=matrices[1],
        feed_forward_hidden=matrices[2],
        feed_forward_output=matrices[3],
        head=pack(head[None], bias, quantization),
        ngrams=pad(ngrams, D),
        ngram_scales=ngram_scales,
        ngram_rows=np.array([len(table) for table in tables], np.int64),
        embedding_skip=embedding_skip,
        cosines=angles[0],
        sines=angles[1],
        frequencies=angles[2],
    )


def shape_of(config: ModelConfig) -> Shape:
    """Return the sizes that the compiled step needs."""
    classic = isinstance(config, GPTConfig)
    D, H, E = config.n_embd, config.n_head, config.n_embd // config.n_head
    K = H if classic else config.kv_heads
    return Shape(
        modern=not classic,
        n_layer=config.n_layer,
        n_head=H,
        n_kv_head=K,
        head_size=E,
        n_embd=D,
        vocab_size=config.vocab_size,
        activation=RELU_SQUARED if not classic else GELU if config.activation == "gelu" else RELU,
        epsilon=1e-5 if classic else 1e-6,
        scale=(1 if classic else QK_GAIN**2) / math.sqrt(E),
        softcap=0.0 if classic else config.logit_softcap,
        width=whole_panels(D),
        projected=whole_panels((H + 2 * K) * E),
        hidden=whole_panels(4 * D),
        scores=whole_panels(config.vocab_size),
        context=config.block_size,
        window=config.rolling_window,
        capacity=whole_panels(config.block_size),
    )


def stacked(arrays: Arrays, name: str, layers: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the weights (L, N, C) and biases (L, N) of one map of all layers."""
    names = [f"blocks.{layer}.{name}" for layer in range(layers)]
    biases = np.stack([arrays[f"{n}.bias"] for n in names]) if f"{names[0]}.bias" in arrays else None
    return np.stack([arrays[f"{n}.weight"] for n in names]), biases


def pack(weights_LNC: np.ndarray, bias_LN: np.ndarray | None, quantization: str | None) -> Matrix:
    """Return the weights of a map in panels of 64 outputs; in int8 each output has a scale."""
    L, N, C = weights_LNC.shape
    panels = whole_panels(N) // PANEL
    padded = np.zeros((L, panels * PANEL, C), np.float32)
    padded[:, :N] = weights_LNC
    bias = np.zeros((L, panels * PANEL), np.float32)
    if bias_LN is not None:
        bias[:, :N] = bias_LN
    if quantization is None:
        values = padded.reshape(L, panels, PANEL, C).transpose(0, 1, 3, 2)
        return Matrix(np.ascontiguousarray(values).ravel(), NONE, np.zeros(0, np.int32), bias.ravel(), C, panels)
    codes, scales = quantize(padded)
    groups = -(-C // 4)
    grouped = np.zeros((L, panels * PANEL, groups * 4), np.int8)
    grouped[..., :C] = codes
    values = np.ascontiguousarray(grouped.reshape(L, panels, PANEL, groups, 4).transpose(0, 1, 3, 2, 4))
    sums = 128 * codes.sum(2, dtype=np.int32)
    return Matrix(values.ravel(), scales.ravel(), sums.ravel(), bias.ravel(), C, panels)


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as int8 codes, and the value of one step for each row."""
    # d = round(w / u)  with  u = max |w| / 127
    scales = (np.abs(rows).max(-1, initial=0) / 127).astype(np.float32)
    return np.rint(rows / np.where(scales > 0, scales, 1)[..., None]).astype(np.int8), scales


def make_workspace(shape: Shape, slots: int, rows: int, threads: int) -> Workspace:
    """Return empty caches and the buffers of a step. The system allocates memory when it is first written."""

    def zeros(*sizes: int, dtype: type = np.float32) -> np.ndarray:
        return np.zeros(math.prod(sizes), dtype)

    caches = slots * shape.n_layer * shape.n_kv_head * shape.capacity
    tile = ROWS_AT_ONCE * PANEL
    return Workspace(
        keys=zeros(caches, shape.head_size),
        values=zeros(caches, whole_panels(shape.head_size)),
        history=zeros(slots, shape.capacity, dtype=np.int64),
        tokens=zeros(rows, dtype=np.int64),
        slots=zeros(rows, dtype=np.int64),
        positions=zeros(rows, dtype=np.int64),
        cosines=zeros(rows, shape.head_size // 2),
        sines=zeros(rows, shape.head_size // 2),
        stream=zeros(rows, shape.width),
        start=zeros(rows, shape.width),
        normed=zeros(rows + threads * FEW, shape.width),
        projected=zeros(rows, shape.projected),
        heads=zeros(rows, shape.width),
        hidden=zeros(rows, shape.hidden),
        logits=zeros(rows, shape.scores),
        scratch=zeros(threads, 2, shape.scores),
        codes=zeros(rows + threads * FEW, shape.hidden, dtype=np.uint8),
        code_scales=zeros(rows + threads * FEW),
        sums=zeros(threads, tile),
        whole_sums=zeros(threads, tile, dtype=np.int32),
        attention=zeros(threads * ROWS_AT_ONCE, shape.capacity),
        counters=zeros(threads + 1, 8, dtype=np.int64),
    )


def pad(rows: np.ndarray, width: int) -> np.ndarray:
    """Pad rows with zeros to a width, and return them as one flat array."""
    padded = np.zeros((*rows.shape[:-1], width), rows.dtype)
    padded[..., : rows.shape[-1]] = rows
    return padded.ravel()


def whole_panels(count: int) -> int:
    """Return a count rounded up to whole panels."""
    return -(-count // PANEL) * PANEL
