"""Names and shapes of all weights of a model, from its configuration, without importing PyTorch.

A checkpoint is compared with these when it is read, so that generating on a CPU needs no PyTorch. A test compares them
with the models in gpt.py and modern.py. For a model with other weights, checkpoints/format.py builds the model itself.

Shapes: V vocabulary    S context    D width    N outputs of the projection to queries, keys and values.
"""

from __future__ import annotations

from quill.model.config import GPTConfig, ModelConfig, ModernConfig

Shapes = dict[str, tuple[int, ...]]


def weight_shapes(config: ModelConfig) -> Shapes:
    """Return the shape of each weight by its name."""
    return _classic(config) if isinstance(config, GPTConfig) else _modern(config)


def _classic(config: GPTConfig) -> Shapes:
    V, S, D = config.vocab_size, config.block_size, config.n_embd
    shapes: Shapes = {"token_embedding.weight": (V, D), "position_embedding.weight": (S, D)}
    for block in (f"blocks.{layer}" for layer in range(config.n_layer)):
        shapes |= _with_bias(f"{block}.attention_norm", (D,), config.bias)
        shapes |= _with_bias(f"{block}.attention.query_key_value", (3 * D, D), config.bias)
        shapes |= _with_bias(f"{block}.attention.output", (D, D), config.bias)
        shapes |= _with_bias(f"{block}.feed_forward_norm", (D,), config.bias)
        shapes |= _with_bias(f"{block}.feed_forward.hidden", (4 * D, D), config.bias)
        shapes |= _with_bias(f"{block}.feed_forward.output", (D, 4 * D), config.bias)
    shapes |= _with_bias("final_norm", (D,), config.bias)
    return shapes if config.tie_weights else shapes | _with_bias("head", (V, D), config.bias)


def _modern(config: ModernConfig) -> Shapes:
    V, D, head_size = config.vocab_size, config.n_embd, config.n_embd // config.n_head
    N = (config.n_head + 2 * config.kv_heads) * head_size
    shapes: Shapes = {"embedding_skip": (config.n_layer,), "token_embedding.weight": (V, D)}
    for table, rows in enumerate(config.ngram_sizes):
        shapes[f"ngram_embedding.tables.{table}.weight"] = (rows, D)
    for block in (f"blocks.{layer}" for layer in range(config.n_layer)):
        shapes[f"{block}.attention.query_key_value.weight"] = (N, D)
        shapes[f"{block}.attention.output.weight"] = (D, D)
        shapes[f"{block}.feed_forward.hidden.weight"] = (4 * D, D)
        shapes[f"{block}.feed_forward.output.weight"] = (D, 4 * D)
    return {**shapes, "head.weight": (V, D)}


def _with_bias(name: str, shape: tuple[int, ...], bias: bool) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})
