"""The key/value cache: what attention has already computed for the text so far, so that a new token costs one step.

It is handed to the model as an argument and belongs to one batch of texts; the model keeps nothing of it.

Where positions can roll (`rolling_window` of the configuration), a full cache goes on token by token: the last
`window` places become a ring, and each new token takes the place of the oldest. The order of places does not matter to
a single query, because each key carries its position with it. The places before the ring keep the text's beginning.

    places     0 … beginning … | … ring of `window` places …  capacity

Ideas: Shazeer 2019, "Fast Transformer Decoding", section 2 (incremental decoding); Jiang et al. 2023, "Mistral 7B",
section 2 (rolling buffer cache).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quill.errors import ConfigError
from quill.model.config import ModelConfig
from quill.validation import require


class KVCache:
    """Keys and values of up to `block_size` tokens for each layer, and their numbers, for texts of one length.

    `length` tokens were read. A forward pass given this cache looks at them, appends its own and moves `length` on.
    Past `capacity` tokens it takes one at a time, and the last `window` tokens are seen; several at once, or one where
    positions cannot roll, are a ConfigError.
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
        self.capacity, self.window = config.block_size, config.rolling_window
        self.length = 0

    @property
    def rolled(self) -> bool:
        """Whether there were more tokens than places, so that some are forgotten."""
        return self.length > self.capacity

    def append(self, layer: int, key_BHTE: Tensor, value_BHTE: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values of T new tokens; return those of all S that are seen, shapes BHSE.

        In a ring they come in the order of places.
        """
        new, seen = self.places(key_BHTE.size(2))
        keys_BHSE, values_BHSE = self.keys_LBHSE[layer], self.values_LBHSE[layer]
        keys_BHSE[:, :, new] = key_BHTE
        values_BHSE[:, :, new] = value_BHTE
        return keys_BHSE[:, :, seen], values_BHSE[:, :, seen]

    def append_tokens(self, tokens_BT: Tensor) -> Tensor:
        """Store T new tokens, for models that look at their numbers again; return all S that are seen, in order."""
        new, seen = self.places(tokens_BT.size(1))
        self.tokens_BS[:, new] = tokens_BT
        return self.tokens_BS[:, seen].roll(seen.stop - new.stop, dims=1)  # the newest comes last

    def places(self, T: int) -> tuple[slice, slice]:
        """Return where T new tokens go, and what they then see."""
        end, limit = self.length + T, self.capacity
        if end <= limit:
            return slice(self.length, end), slice(0, end)
        if not self.window or T > 1:
            tail = "; a text that is longer goes on token by token" if self.window else ""
            raise ConfigError(f"{end} tokens do not fit the model's context of block_size={limit}{tail}")
        first = limit - self.window
        place = first + (self.length - limit) % self.window
        return slice(place, place + 1), slice(first, limit)

    def advance(self, tokens: int) -> None:
        """Count tokens as held, once every layer has appended them."""
        self.length += tokens

    def repeat(self, batch_size: int) -> KVCache:
        """Return a new cache that holds this one text in each of `batch_size` rows, so that a prompt is read once."""
        keys_LBHSE, held = self.keys_LBHSE, min(self.length, self.capacity)
        rows = KVCache(self.config, batch_size, keys_LBHSE.device, keys_LBHSE.dtype)
        rows.keys_LBHSE[:, :, :, :held] = keys_LBHSE[:, :, :, :held]
        rows.values_LBHSE[:, :, :, :held] = self.values_LBHSE[:, :, :, :held]
        rows.tokens_BS[:, :held] = self.tokens_BS[:, :held]
        rows.advance(self.length)
        return rows

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`; what remains is as if they had never been seen.

        Where a ring has forgotten tokens of its own, only the beginning before it can be gone back to.
        """
        whole = self.capacity - self.window if self.rolled else self.length
        accepted = f"from 0 to the {whole} tokens that are held" + (" from the beginning" if self.rolled else "")
        require(0 <= length <= whole or length == self.length, "length", length, accepted)
        self.length = length
