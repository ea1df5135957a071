"""The key/value cache: the keys and values of a text so far, so that a forward pass computes only those of new tokens.

It is an argument of the model and belongs to one batch of texts; the model keeps no reference to it.

Where positions can roll (`rolling_window` of the configuration), a full cache takes further tokens one at a time: its
last `window` slots become a ring in which each new token replaces the oldest. A single query does not depend on the
order of slots, because each key carries its position. The slots before the ring keep the beginning of the text.

    slots      0 … beginning … | … ring of `window` slots …  capacity

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
    """Keys and values of up to `block_size` tokens for each layer, and the token ids, of texts of one length.

    `length` counts the tokens read so far. A forward pass attends to them, appends its own and advances `length`.
    Beyond `capacity` tokens it takes one at a time, and the last `window` tokens are attended to. Several at once, or
    one where positions cannot roll, are a ConfigError.
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
        """Whether more tokens were read than there are slots, so that some were overwritten."""
        return self.length > self.capacity

    def append(self, layer: int, key_BHTE: Tensor, value_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values of T new tokens; return those of all S tokens attended to, shapes BHSE.

        In a ring they are in the order of slots.
        """
        new, attended = self.slots(key_BHTE.size(2))
        keys_BHSE, values_BHSE = self.keys_LBHSE[layer], self.values_LBHSE[layer]
        keys_BHSE[:, :, new] = key_BHTE
        values_BHSE[:, :, new] = value_BHTE
        return keys_BHSE[:, :, attended], values_BHSE[:, :, attended]

    def append_tokens(self, tokens_BT: Tensor) -> Tensor:
        """Store T new token ids, for models with n-gram embeddings; return all S that are attended to, in order."""
        new, attended = self.slots(tokens_BT.size(1))
        self.tokens_BS[:, new] = tokens_BT
        return self.tokens_BS[:, attended].roll(attended.stop - new.stop, dims=1)  # the newest comes last

    def slots(self, T: int) -> tuple[slice, slice]:
        """Return the slots of T new tokens, and all slots that they then attend to."""
        end, limit = self.length + T, self.capacity
        if end <= limit:
            return slice(self.length, end), slice(0, end)
        if not self.window or T > 1:
            one_by_one = "; beyond it, give them token by token" if self.window else ""
            raise ConfigError(f"{end} tokens do not fit the model's context of block_size={limit}{one_by_one}")
        first = limit - self.window
        slot = first + (self.length - limit) % self.window
        return slice(slot, slot + 1), slice(first, limit)

    def advance(self, tokens: int) -> None:
        """Count tokens as read, once every layer has appended them."""
        self.length += tokens

    def repeat(self, batch_size: int) -> KVCache:
        """Return a new cache with this one text in each of `batch_size` rows, so that a prompt is read once."""
        keys_LBHSE, filled = self.keys_LBHSE, min(self.length, self.capacity)
        rows = KVCache(self.config, batch_size, keys_LBHSE.device, keys_LBHSE.dtype)
        rows.keys_LBHSE[:, :, :, :filled] = keys_LBHSE[:, :, :, :filled]
        rows.values_LBHSE[:, :, :, :filled] = self.values_LBHSE[:, :, :, :filled]
        rows.tokens_BS[:, :filled] = self.tokens_BS[:, :filled]
        rows.advance(self.length)
        return rows

    def truncate(self, length: int) -> None:
        """Remove all tokens after the first `length`; the rest is as if they had never been read.

        Once a ring has overwritten tokens, only lengths within the beginning before the ring are possible.
        """
        whole = self.capacity - self.window if self.rolled else self.length
        accepted = f"from 0 to the {whole} tokens that are stored" + (" of the beginning" if self.rolled else "")
        require(0 <= length <= whole or length == self.length, "length", length, accepted)
        self.length = length


def refuse_targets(cache: object) -> None:
    """Raise ConfigError if a tensor is given as the cache: the habit of `logits, loss = model(x, y)`."""
    if isinstance(cache, Tensor):
        raise ConfigError(
            "the second argument of a model is a KVCache, not a Tensor: the model returns logits only; "
            "for the loss use quill.evaluation.loss.cross_entropy(model(x), y)"
        )
