"""The key/value cache: what attention has already computed for the text so far, so that a new token costs one step.

It is handed to the model as an argument and belongs to one batch of texts; the model keeps nothing of it.
Idea: Shazeer 2019, "Fast Transformer Decoding", section 2 (incremental decoding).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quill.errors import require
from quill.model.config import ModelConfig


class KVCache:
    """Keys and values of up to `block_size` tokens for each layer, and their numbers, for texts of one length.

    `length` tokens are held. A forward pass given this cache reads them, appends its own and moves `length` on.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        # Layout L B H S E: each layer's keys are one contiguous block, written in place and never grown.
        heads = getattr(config, "n_kv_head", None) or config.n_head
        shape = (config.n_layer, batch_size, heads, config.block_size, config.n_embd // config.n_head)
        self.keys_LBHSE = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBHSE = torch.zeros(shape, device=device, dtype=dtype)
        self.tokens_BS = torch.zeros((batch_size, config.block_size), device=device, dtype=torch.long)
        self.config = config
        self.capacity = config.block_size
        self.length = 0

    def append(self, layer: int, key_BHTE: Tensor, value_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values of T new tokens; return all S = length + T of them, shapes BHSE."""
        end = self.length + key_BHTE.size(2)
        keys_BHSE, values_BHSE = self.keys_LBHSE[layer], self.values_LBHSE[layer]
        keys_BHSE[:, :, self.length : end] = key_BHTE
        values_BHSE[:, :, self.length : end] = value_BHTE
        return keys_BHSE[:, :, :end], values_BHSE[:, :, :end]

    def append_tokens(self, tokens_BT: Tensor) -> Tensor:
        """Store T new tokens, for models that look at their numbers again; return all S = length + T of them."""
        end = self.length + tokens_BT.size(1)
        self.tokens_BS[:, self.length : end] = tokens_BT
        return self.tokens_BS[:, :end]

    def advance(self, tokens: int) -> None:
        """Count tokens as held, once every layer has appended them."""
        self.length += tokens

    def repeat(self, batch_size: int) -> KVCache:
        """Return a new cache that holds this one text in each of `batch_size` rows, so that a prompt is read once."""
        keys_LBHSE, length = self.keys_LBHSE, self.length
        rows = KVCache(self.config, batch_size, keys_LBHSE.device, keys_LBHSE.dtype)
        rows.keys_LBHSE[:, :, :, :length] = keys_LBHSE[:, :, :, :length]
        rows.values_LBHSE[:, :, :, :length] = self.values_LBHSE[:, :, :, :length]
        rows.tokens_BS[:, :length] = self.tokens_BS[:, :length]
        rows.advance(length)
        return rows

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`; what remains is as if they had never been seen."""
        require(0 <= length <= self.length, "length", length, f"from 0 to the {self.length} tokens that are held")
        self.length = length
