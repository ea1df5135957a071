"""A static-shape twin of a model for CUDA-graph capture: fixed addresses, no host sync.

One step computes one token in each of B slots, at a position of its own that is stored on the device. A CUDA graph can
capture such a step and replay it. It is the model's own forward pass with the model's own weights. Two parts are
replaced from outside: the source of positions, and the mask of keys that each slot attends to.

Idea: gpt-fast (PyTorch team 2023, "Accelerating Generative AI with PyTorch II"), static cache.

Shapes: B slots, S tokens that a slot holds, K heads of keys, E size of a head, V vocabulary, N longest n-gram.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quill.model.build import Model, build_model
from quill.model.cache import KVCache
from quill.model.config import ModelConfig
from quill.model.gpt import GPT
from quill.model.modern import Rotary


class StaticCache:
    """Keys and values of B sequences of any lengths, in place of the KVCache of a model.

    `positions_B` is the number of tokens in each slot. A forward pass appends one token in each slot, and counts it if
    `active_B` is 1. In other slots the entry after the last token is overwritten, which has no effect.
    """

    length = 0  # unused by the twin, but read by the model's forward pass; each slot's length is in positions_B

    def __init__(self, config: ModelConfig, slots: int, device: torch.device | None, dtype: torch.dtype) -> None:
        S, V = config.block_size, config.vocab_size
        shape = (slots, config.kv_heads, S, config.n_embd // config.n_head)
        # One tensor per layer: a change of one does not affect how a compiler treats the others.
        self.keys_LBKSE = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values_LBKSE = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.tokens_BS = torch.full((slots, S), V, device=device)
        self.positions_B = torch.zeros(slots, dtype=torch.long, device=device)
        self.active_B = torch.zeros(slots, dtype=torch.long, device=device)
        # Of one step, for all its layers: the index of the new key, and the mask of keys that each slot attends to.
        self.at_B = torch.zeros_like(self.positions_B)
        self.mask_BS = torch.zeros(slots, S, device=device, dtype=dtype)
        self._window = config.rolling_window
        self._keys_S = torch.arange(S, device=device)
        self._back_N = torch.arange(1 - getattr(config, "ngram", 1), 1, device=device)  # …, -2, -1, 0
        self._seen, self._unseen = (torch.full((), value, device=device, dtype=dtype) for value in (0.0, -math.inf))
        self._capacity, self._no_token = S, V

    def begin_step(self) -> None:
        """Compute the index and the mask that all layers of a step use."""
        self.at_B.copy_(self._entry_of(self.positions_B))
        seen_BS = self._keys_S <= self.at_B[:, None]
        if self._window:
            in_ring_S = self._keys_S >= self._capacity - self._window
            seen_BS = torch.where(self.positions_B[:, None] < self._capacity, seen_BS, in_ring_S)
        torch.where(seen_BS, self._seen, self._unseen, out=self.mask_BS)

    def _entry_of(self, positions: Tensor) -> Tensor:
        """Return the cache entries of tokens at these positions, as `KVCache.entries` does."""
        if not self._window:
            # A full slot is prefilled again before it continues; until then the index only has to be valid.
            return positions.clamp(max=self._capacity - 1)
        first = self._capacity - self._window
        return torch.where(positions < self._capacity, positions, first + (positions - self._capacity) % self._window)

    def append(self, layer: int, key_BK1E: Tensor, value_BK1E: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values of this step; return all entries, used or not, shapes BKSE."""
        keys_BKSE, values_BKSE = self.keys_LBKSE[layer], self.values_LBKSE[layer]
        at_BK1E = self.at_B[:, None, None, None].expand_as(key_BK1E)
        keys_BKSE.scatter_(2, at_BK1E, key_BK1E)
        values_BKSE.scatter_(2, at_BK1E, value_BK1E)
        return keys_BKSE, values_BKSE

    def append_tokens(self, tokens_B1: Tensor) -> Tensor:
        """Store this step's tokens; return the last N of each slot, with V for missing ones."""
        self.tokens_BS.scatter_(1, self.at_B[:, None], tokens_B1)
        back_BN = self.positions_B[:, None] + self._back_N
        tokens_BN = self.tokens_BS.gather(1, self._entry_of(back_BN.clamp(min=0)))
        missing_BN = back_BN < 0
        if self._window:
            rolling_B1 = self.positions_B[:, None] >= self._capacity
            missing_BN = missing_BN | (rolling_B1 & (self._back_N <= -self._window))
        return tokens_BN.masked_fill(missing_BN, self._no_token)

    def advance(self, tokens: int) -> None:
        """Advance the position of each active slot."""
        self.positions_B.add_(self.active_B, alpha=tokens)

    def fill(self, slot: int, read: KVCache) -> None:
        """Copy the cache of one sequence into a slot."""
        length = read.length
        for layer, (keys_BKSE, values_BKSE) in enumerate(zip(self.keys_LBKSE, self.values_LBKSE, strict=True)):
            keys_BKSE[slot, :, :length] = read.keys_LBHSE[layer, 0, :, :length]
            values_BKSE[slot, :, :length] = read.values_LBHSE[layer, 0, :, :length]
        self.tokens_BS[slot, :length] = read.tokens_BS[0, :length]
        self.positions_B[slot] = length


class LearnedPositions(nn.Module):
    """The model's position embedding at each slot's own position; the argument of `forward` is ignored."""

    def __init__(self, embedding: nn.Embedding, cache: StaticCache) -> None:
        super().__init__()
        self.embedding, self.cache = embedding, cache

    def forward(self, _: Tensor) -> Tensor:
        return self.embedding(self.cache.at_B)[:, None]


class RotaryPositions(nn.Module):
    """The model's rotary embedding at each slot's own position; the `start` of `forward` has no effect."""

    def __init__(self, rotary: Rotary, cache: StaticCache) -> None:
        super().__init__()
        self.cache, self.rotary = cache, rotary
        self.frequencies_E = rotary.frequencies_E.to(cache.at_B.device)
        slots = len(cache.at_B)
        rotary.cosines_SE, rotary.sines_SE = (t[:1].repeat(slots, 1) for t in (rotary.cosines_SE, rotary.sines_SE))

    def begin_step(self) -> None:
        """Compute the angles of this step, for all layers, in float64 as the model does."""
        angles_BE = self.cache.positions_B[:, None] * self.frequencies_E
        self.rotary.cosines_SE.copy_(angles_BE.cos())
        self.rotary.sines_SE.copy_(angles_BE.sin())

    def forward(self, x_B1HE: Tensor, start: int) -> Tensor:
        # Slots and time are swapped: the model's code then rotates each slot by a row of the angles, as it does time.
        return self.rotary(x_B1HE.transpose(0, 1), start).transpose(0, 1)


class OtherModelError(Exception):
    """The model has other weights than Quill's own models, so there is no static twin of it."""


class StaticModel:
    """A twin of a model with the same weights, which computes one token in each of `slots` slots at once.

    It shares the model's weight tensors: in-place changes affect both. If the model is moved to another device, the
    twin keeps the old tensors.
    """

    def __init__(self, model: Model, slots: int) -> None:
        weight = model.token_embedding.weight
        self.cache = StaticCache(model.config, slots, weight.device, weight.dtype)
        with torch.device("meta"):  # without memory for weights; those of the model are assigned below
            self.twin = build_model(model.config).eval()
        weights, known = model.state_dict(), self.twin.state_dict()
        for name in sorted(weights.keys() | known.keys()):
            if name not in weights or name not in known or weights[name].shape != known[name].shape:
                raise OtherModelError(f"and this engine does not know its weight {name}")
        self.twin.load_state_dict(weights, assign=True)
        twin: Any = self.twin  # untyped, because submodules and methods are replaced
        self.rotary: RotaryPositions | None = None
        if isinstance(self.twin, GPT):
            twin.position_embedding = LearnedPositions(self.twin.position_embedding, self.cache)
        else:
            # A new one, because its tables are buffers that the checkpoint of weights does not have.
            rotary = Rotary(model.config.block_size, model.config.n_embd // model.config.n_head)
            self.rotary = RotaryPositions(rotary.to(weight.device), self.cache)
        for block in twin.blocks:
            block.attention.attend = partial(self._attend, getattr(block.attention, "scale", None))
            if self.rotary is not None:
                block.attention.rotary = self.rotary

    def __call__(self, tokens_B: Tensor) -> Tensor:
        """Return logits_BV after one more token in each slot."""
        self.cache.begin_step()
        if self.rotary is not None:
            self.rotary.begin_step()
        return self.twin(tokens_B[:, None], self.cache)[:, 0]

    def _attend(self, scale: float | None, q_BH1E: Tensor, k_BHSE: Tensor, v_BHSE: Tensor) -> Tensor:
        """Return heads_BH1E: softmax(q Kᵀ · scale + mask) V.

        PyTorch's fused kernels share out the work by queries. With one query they took 30 µs a layer on an H200, almost
        half of the time of a token (docs/log.md).
        """
        scale = 1 / math.sqrt(q_BH1E.size(-1)) if scale is None else scale
        scores_BH1S = (q_BH1E * scale) @ k_BHSE.mT + self.cache.mask_BS[:, None, None]
        return scores_BH1S.softmax(-1) @ v_BHSE
