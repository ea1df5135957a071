"""The reference engine: the model itself with its key/value cache, on any device.

On a CPU each sequence is computed by itself, so that its bits do not depend on the others. On other devices sequences
of equal length are computed as one batch.

Shapes: B sequences, T tokens, V vocabulary.
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
from quill.engines.request import Request
from quill.engines.sampling import BatchSampler, Stages, stages_of
from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.modes import evaluation_mode

UNIFORMS_AT_ONCE = 256  # tokens

if hasattr(os, "register_at_fork"):
    # A forked child lacks the threads of OpenMP that its parent started, and would wait for them forever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@dataclass
class _Sequence:
    """One sequence: its request, the cache and row with its keys and values, and its last token."""

    slot: int
    request: Request
    stages: Stages
    num_generated: int = 0
    cache: KVCache | None = None
    row: int = 0
    token: int = 0
    uniforms: list[float] = field(default_factory=list)

    def next_uniform(self) -> float:
        if not self.uniforms:
            block_T1 = uniforms(self.request.seed, [self.request.row], self.num_generated, UNIFORMS_AT_ONCE)
            self.uniforms = block_T1[::-1, 0].tolist()
        self.num_generated += 1
        return self.uniforms.pop()


class TorchEngine:
    """An `Engine` by PyTorch."""

    prefers_idle_cores = False
    burst = 1
    copy = None  # a matrix product of another size may round differently; but equal prompts are computed once

    def __init__(self, model: Model, slots: int = 1) -> None:
        weight = model.token_embedding.weight
        self.model, self.config, self.slots, self.context = model, model.config, slots, model.config.block_size
        self.rolls = model.config.rolling_window > 0
        self.device, self.dtype = weight.device, weight.dtype
        self.sampler = BatchSampler(slots, model.config.vocab_size, self.device)
        self.sequences: dict[int, _Sequence] = {}

    @torch.inference_mode()
    def assign(self, slot: int, request: Request) -> None:
        self.sampler.assign(slot, request)
        self.sequences[slot] = _Sequence(slot, request, stages_of([request]))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        read: dict[tuple[int, ...], tuple[KVCache, Tensor]] = {}
        for prompt in prompts:
            if (key := tuple(prompt.tokens)) not in read:
                cache = KVCache(self.config, 1, self.device, self.dtype)
                read[key] = cache, self._forward(torch.tensor([key], device=self.device), cache)
            sequence = self.sequences[prompt.slot]
            sequence.cache, sequence.row = read[key][0].repeat(1), 0
        logits_BV = torch.cat([read[tuple(prompt.tokens)][1] for prompt in prompts])
        return self._choose([self.sequences[prompt.slot] for prompt in prompts], logits_BV)

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        outputs = [self._step([self.sequences[slot] for slot in slots]) for _ in range(steps)]
        tokens_TB = np.concatenate([output.tokens_TB for output in outputs])
        return StepOutput(tokens_TB, np.concatenate([output.logits_TBV for output in outputs]))

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        with evaluation_mode(self.model):
            return self.model(torch.tensor([list(tokens)], device=self.device))[0].float().cpu().numpy()

    def release(self, slot: int) -> None:
        self.sequences.pop(slot, None)

    def _step(self, sequences: list[_Sequence]) -> StepOutput:
        logits_BV = torch.empty(len(sequences), self.config.vocab_size, device=self.device, dtype=self.dtype)
        for members in self._groups(sequences):
            group = [sequences[i] for i in members]
            cache = self._gather(group)
            tokens_B1 = torch.tensor([[sequence.token] for sequence in group], device=self.device)
            logits_BV[members] = self._forward(tokens_B1, cache)
        return self._choose(sequences, logits_BV)

    def _groups(self, sequences: list[_Sequence]) -> list[list[int]]:
        """Return lists of indices of the sequences that are computed as one batch."""
        if self.device.type == "cpu":
            return [[i] for i in range(len(sequences))]
        groups: dict[int, list[int]] = {}
        for i, sequence in enumerate(sequences):
            groups.setdefault(sequence.cache.length if sequence.cache else 0, []).append(i)
        return list(groups.values())

    def _gather(self, sequences: list[_Sequence]) -> KVCache:
        """Return one cache with all these sequences of equal length: the one that they already share, or a new one."""
        first = sequences[0].cache
        assert first is not None
        rows = first.keys_LBHSE.size(1)
        if rows == len(sequences) and all(s.cache is first and s.row == row for row, s in enumerate(sequences)):
            return first
        cache = KVCache(self.config, len(sequences), self.device, self.dtype)
        for row, sequence in enumerate(sequences):
            assert sequence.cache is not None
            cache.keys_LBHSE[:, row] = sequence.cache.keys_LBHSE[:, sequence.row]
            cache.values_LBHSE[:, row] = sequence.cache.values_LBHSE[:, sequence.row]
            cache.tokens_BS[row] = sequence.cache.tokens_BS[sequence.row]
        cache.advance(first.length)
        for row, sequence in enumerate(sequences):
            sequence.cache, sequence.row = cache, row
        return cache

    def _choose(self, sequences: list[_Sequence], logits_BV: Tensor) -> StepOutput:
        """Choose the next token of each sequence."""
        logits_BV = logits_BV.float()
        slots = [sequence.slot for sequence in sequences]
        rows = None if slots == list(range(self.slots)) else torch.tensor(slots, device=self.device)
        uniform_B = torch.tensor([sequence.next_uniform() for sequence in sequences], device=self.device)
        stages = frozenset().union(*(sequence.stages for sequence in sequences))
        tokens = self.sampler.choose(logits_BV, uniform_B, stages, rows).tolist()
        self.sampler.rules.counts_BV[slots, tokens] += 1
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.token = token
        return StepOutput(np.array([tokens]), logits_BV.cpu().numpy()[None])

    def _forward(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Return logits_BV after the last of these tokens, and append them to the cache."""
        with evaluation_mode(self.model):
            return self.model(tokens_BT, cache)[:, -1]
