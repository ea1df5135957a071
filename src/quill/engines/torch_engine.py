"""The reference engine: the model itself, with its key/value cache, on any device.

On the way text → tokens → model → training → generation → people this is generation as it is explained: read the
prompt at once, then one token after another. On a CPU each text is computed by itself, so that not a bit of it depends
on the texts beside it; on other devices texts of one length are computed as one batch.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quill.engines.base import PrefillInput, StepOutput
from quill.engines.random_numbers import uniforms
from quill.engines.request import Request, SamplingConfig
from quill.engines.sampling import adjust, choose_tokens
from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.modes import evaluation_mode

UNIFORMS_AT_ONCE = 256  # tokens

if hasattr(os, "register_at_fork"):
    # A forked child lacks the threads of OpenMP that its parent started, and would wait for them forever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@dataclass
class _Place:
    """One text: its request, where its keys and values are, and its last token."""

    request: Request
    bias_V: Tensor
    seen_V: Tensor
    counts_V: Tensor
    written: int = 0
    cache: KVCache | None = None
    row: int = 0
    token: int = 0
    uniforms: list[float] = field(default_factory=list)

    def adjust(self, logits_V: Tensor) -> Tensor:
        return adjust(logits_V, self.request.sampling, self.bias_V, self.seen_V, self.counts_V)

    def next_uniform(self) -> float:
        if not self.uniforms:
            block_T1 = uniforms(self.request.seed, [self.request.row], self.written, UNIFORMS_AT_ONCE)
            self.uniforms = block_T1[::-1, 0].tolist()
        return self.uniforms.pop()

    def take(self, token: int) -> None:
        self.counts_V[token] += 1
        self.token = token
        self.written += 1


class TorchEngine:
    """Engine by PyTorch, as `engine.Engine` says."""

    burst = 1
    copy = None  # a matrix product of another size may round differently; whole prompts are read once though

    def __init__(self, model: Model, slots: int = 1) -> None:
        weight = model.token_embedding.weight
        self.model, self.config, self.slots, self.context = model, model.config, slots, model.config.block_size
        self.rolls = model.config.rolling_window > 0
        self.device, self.dtype = weight.device, weight.dtype
        self.places: dict[int, _Place] = {}

    def assign(self, slot: int, request: Request) -> None:
        V = self.config.vocab_size
        bias_V, seen_V, counts_V = (torch.zeros(V, device=self.device) for _ in range(3))
        for token, bias in request.logit_bias.items():
            bias_V[token] = bias
        seen_V[list(request.prompt)] = 1
        self.places[slot] = _Place(request, bias_V, seen_V, counts_V)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        read: dict[tuple[int, ...], tuple[KVCache, Tensor]] = {}
        for prompt in prompts:
            if (key := tuple(prompt.tokens)) not in read:
                cache = KVCache(self.config, 1, self.device, self.dtype)
                read[key] = cache, self._read(torch.tensor([key], device=self.device), cache)
            place = self.places[prompt.slot]
            place.cache, place.row = read[key][0].repeat(1), 0
        logits_BV = torch.cat([read[tuple(prompt.tokens)][1] for prompt in prompts])
        return self._choose([self.places[prompt.slot] for prompt in prompts], logits_BV)

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        written = [self._step([self.places[slot] for slot in slots]) for _ in range(steps)]
        tokens_TB = np.concatenate([one.tokens_TB for one in written])
        return StepOutput(tokens_TB, np.concatenate([one.logits_TBV for one in written]))

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        with evaluation_mode(self.model):
            return self.model(torch.tensor([list(tokens)], device=self.device))[0].float().cpu().numpy()

    def release(self, slot: int) -> None:
        self.places.pop(slot, None)

    def _step(self, places: list[_Place]) -> StepOutput:
        logits_BV = torch.empty(len(places), self.config.vocab_size, device=self.device, dtype=self.dtype)
        for members in self._families(places):
            family = [places[i] for i in members]
            cache = self._gather(family)
            tokens_B1 = torch.tensor([[place.token] for place in family], device=self.device)
            logits_BV[members] = self._read(tokens_B1, cache)
        return self._choose(places, logits_BV)

    def _families(self, places: list[_Place]) -> list[list[int]]:
        """Return which of these texts are computed together, as their numbers in the list."""
        if self.device.type == "cpu":
            return [[i] for i in range(len(places))]
        families: dict[int, list[int]] = {}
        for i, place in enumerate(places):
            families.setdefault(place.cache.length if place.cache else 0, []).append(i)
        return list(families.values())

    def _gather(self, places: list[_Place]) -> KVCache:
        """Return one cache of all these texts, which have one length; the one they share already, if they do."""
        first = places[0].cache
        assert first is not None
        whole = first.keys_LBHSE.size(1)
        if whole == len(places) and all(p.cache is first and p.row == row for row, p in enumerate(places)):
            return first
        cache = KVCache(self.config, len(places), self.device, self.dtype)
        for row, place in enumerate(places):
            assert place.cache is not None
            cache.keys_LBHSE[:, row] = place.cache.keys_LBHSE[:, place.row]
            cache.values_LBHSE[:, row] = place.cache.values_LBHSE[:, place.row]
            cache.tokens_BS[row] = place.cache.tokens_BS[place.row]
        cache.advance(first.length)
        for row, place in enumerate(places):
            place.cache, place.row = cache, row
        return cache

    def _choose(self, places: list[_Place], logits_BV: Tensor) -> StepOutput:
        logits_BV = logits_BV.float()
        alike: dict[SamplingConfig, list[int]] = {}
        for i, place in enumerate(places):
            alike.setdefault(place.request.sampling, []).append(i)
        for sampling, members in alike.items():
            adjusted_BV = torch.stack([places[i].adjust(logits_BV[i]) for i in members])
            uniform_B = torch.tensor([places[i].next_uniform() for i in members], device=self.device)
            tokens_B = choose_tokens(adjusted_BV, sampling, uniform_B)
            for i, token in zip(members, tokens_B.tolist(), strict=True):
                places[i].take(token)
        return StepOutput(np.array([[place.token for place in places]]), logits_BV.cpu().numpy()[None])

    def _read(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Return logits_BV after the last of these tokens, which the cache then holds."""
        with evaluation_mode(self.model):
            return self.model(tokens_BT, cache)[:, -1]
