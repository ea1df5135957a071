"""The key/value cache: keys and values of the tokens so far, so that a forward pass computes only those of new tokens.

It is an argument of the model and belongs to one batch of sequences; the model keeps no reference to it.

If positions can roll (`rolling_window` of the configuration), a full cache takes further tokens one at a time: its last
`window` entries become a ring buffer in which each new token replaces the oldest. The order of entries does not matter
to a query, because each key contains its position. The entries before the ring keep the beginning of the sequence.

    entries    0 … beginning … | … ring of `window` entries …  capacity

Sources: Shazeer 2019, "Fast Transformer Decoding", section 2 (incremental decoding); Jiang et al. 2023, "Mistral 7B",
section 2 (rolling buffer cache).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quill.errors import ConfigError
from quill.model.config import ModelConfig
from quill.validation import require


class KVCache:
    """Keys and values of up to `block_size` tokens for each layer, and the token ids, for sequences of equal length.

    `length` is the number of tokens so far. A forward pass attends to them, appends its own and advances `length`.
    Beyond `capacity` tokens it takes one token at a time, which attends to the last `window`. Several at once are a
    ConfigError there, and so is any token if positions cannot roll.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        # Layout L B H S E: each layer's keys are one contiguous block, written in place and never grown.
        shape = (config.n_layer, batch_size, config.kv_heads, config.block_size, config.n_embd // config.n_head)
        self.keys_LBHSE = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBHSE = torch.zeros(shape, device=device, dtype=dtype)
        self.tokens_BS = torch.zeros((batch_size, config.block_size), device=device, dtype=torch.long)
        self.config = config
        self.capacity, self.window = config.block_size, config.rolling_window
        self.length = 0

    @property
    def rolled(self) -> bool:
        """Whether there were more tokens than entries, so that some were overwritten."""
        return self.length > self.capacity

    def append(self, layer: int, key_BHTE: Tensor, value_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values of T new tokens; return those of all S attended tokens, shapes BHSE.

        Those of a ring are in the order of its entries.
        """
        new, attended = self.entries(key_BHTE.size(2))
        keys_BHSE, values_BHSE = self.keys_LBHSE[layer], self.values_LBHSE[layer]
        keys_BHSE[:, :, new] = key_BHTE
        values_BHSE[:, :, new] = value_BHTE
        return keys_BHSE[:, :, attended], values_BHSE[:, :, attended]

    def append_tokens(self, tokens_BT: Tensor) -> Tensor:
        """Store T new token ids, for models with n-gram embeddings; return all S attended ones, in order."""
        new, attended = self.entries(tokens_BT.size(1))
        self.tokens_BS[:, new] = tokens_BT
        return self.tokens_BS[:, attended].roll(attended.stop - new.stop, dims=1)  # the newest comes last

    def entries(self, T: int) -> tuple[slice, slice]:
        """Return the entries of T new tokens, and all entries that these tokens attend to."""
        end, limit = self.length + T, self.capacity
        if end <= limit:
            return slice(self.length, end), slice(0, end)
        if not self.window or T > 1:
            one_by_one = "; beyond it, give them token by token" if self.window else ""
            raise ConfigError(f"{end} tokens do not fit the model's context of block_size={limit}{one_by_one}")
        first = limit - self.window
        entry = first + (self.length - limit) % self.window
        return slice(entry, entry + 1), slice(first, limit)

    def advance(self, tokens: int) -> None:
        """Add to `length`, once every layer has appended the new tokens."""
        self.length += tokens

    def repeat(self, batch_size: int) -> KVCache:
        """Return a new cache with this single sequence in each of `batch_size` rows, so that a prompt is read once."""
        keys_LBHSE, filled = self.keys_LBHSE, min(self.length, self.capacity)
        rows = KVCache(self.config, batch_size, keys_LBHSE.device, keys_LBHSE.dtype)
        rows.keys_LBHSE[:, :, :, :filled] = keys_LBHSE[:, :, :, :filled]
        rows.values_LBHSE[:, :, :, :filled] = self.values_LBHSE[:, :, :, :filled]
        rows.tokens_BS[:, :filled] = self.tokens_BS[:, :filled]
        rows.advance(self.length)
        return rows

    def truncate(self, length: int) -> None:
        """Remove all tokens after the first `length`; the cache is then as it was at that length.

        Once a ring has overwritten tokens, `length` can only be within the entries before the ring.
        """
        whole = self.capacity - self.window if self.rolled else self.length
        accepted = f"from 0 to the {whole} tokens that are stored" + (" of the beginning" if self.rolled else "")
        require(0 <= length <= whole or length == self.length, "length", length, accepted)
        self.length = length


def refuse_targets(cache: object) -> None:
    """Raise ConfigError if a tensor is given as the cache, as in nanoGPT's `logits, loss = model(x, y)`."""
    if isinstance(cache, Tensor):
        raise ConfigError(
            "the second argument of a model is a KVCache, not a Tensor: the model returns logits only; "
            "for the loss use quill.evaluation.loss.cross_entropy(model(x), y)"
        )
