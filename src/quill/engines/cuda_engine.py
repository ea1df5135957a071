"""The fast engine for NVIDIA GPUs: many tokens of all slots in one CUDA graph, sampling included.

A token of a small model takes about a hundred small operations, and launching one from Python takes longer than
computing it. So a step is captured once (`static_model.py` has fixed shapes and addresses for this) and replayed. One
launch computes 16 tokens: the chosen token is the input of the next step on the device, and results are copied to the
host once per burst. Each step computes all slots, used or not, so its shapes never change, and no slot depends on the
others.

Source: Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs". How it is made fast: docs/speed.md.

Shapes: T steps, B slots, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quill.acceleration.cuda_graph import CudaGraphCapture, GraphCapture
from quill.engines.base import PrefillInput, StepOutput, print_status
from quill.engines.random_numbers import uniforms
from quill.engines.request import Request
from quill.engines.sampling import ALL_STAGES, BatchSampler, Stages, stages_of
from quill.engines.static_model import StaticModel
from quill.errors import first_line
from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.modes import evaluation_mode

BURST = 16  # steps of the longest graph
UNIFORMS_AT_ONCE = 256  # tokens

Replay = Callable[[], None]


@dataclass
class _Sequence:
    """The request of a slot, and the random numbers that it needs next."""

    request: Request
    num_drawn: int = 0
    ahead_T: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def uniforms(self, steps: int) -> np.ndarray:
        """Return the uniforms of the next tokens, shape (T,)."""
        if len(self.ahead_T) < steps:
            start, count = self.num_drawn + len(self.ahead_T), max(steps, UNIFORMS_AT_ONCE)
            more_T = uniforms(self.request.seed, [self.request.row], start, count)[:, 0]
            self.ahead_T = np.concatenate([self.ahead_T, more_T])
        now_T, self.ahead_T = np.split(self.ahead_T, [steps])
        self.num_drawn += steps
        return now_T


class CudaEngine:
    """An `Engine` by CUDA graphs, with the weights in their own number format (float32 in every checkpoint).

    `graphs` captures the steps; None runs them in eager mode, on any device, and the default is CUDA graphs on a GPU.
    With `compiled`, PyTorch's compiler fuses the operations of a step first. That takes long and pays only for very
    long outputs. If either fails, `on_status` is called with one sentence, and the engine continues without it.
    """

    prefers_idle_cores = False
    burst = BURST
    copy = None  # a matrix product of another size may round differently

    @torch.inference_mode(False)  # tensors made in that mode may not be changed outside of it
    def __init__(
        self,
        model: Model,
        *,
        slots: int = 1,
        graphs: GraphCapture | str | None = "auto",
        compiled: bool = False,
        on_status: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.config, self.slots, self.context = model, model.config, slots, model.config.block_size
        self.rolls = model.config.rolling_window > 0
        self.device = model.token_embedding.weight.device
        on_gpu = self.device.type == "cuda"
        self.graphs: GraphCapture | None
        if isinstance(graphs, str):
            # After the next replay a graph's results are needed only in the tensors below.
            self.graphs = CudaGraphCapture(self.device, share_memory=True) if on_gpu else None
        else:
            self.graphs = graphs
        self._on_status = on_status or print_status
        V = self.config.vocab_size
        self.static = StaticModel(model, slots)
        self.sampler = BatchSampler(slots, V, self.device)
        self._take_step: Callable[[Stages], None] = self._step
        if compiled:
            # With this option a product with a single row is fused with its neighbours (gpt-fast does the same).
            self._take_step = torch.compile(
                self._step, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True}
            )

        def zeros(*shape: int, dtype: torch.dtype = torch.float32, host: bool = False) -> Tensor:
            # A GPU writes to pinned memory without waiting for the host.
            return torch.zeros(shape, dtype=dtype, device="cpu" if host else self.device, pin_memory=host and on_gpu)

        self.tokens_B = zeros(slots, dtype=torch.long)  # chosen last
        self.logits_BV = zeros(slots, V)  # of the current step
        self.step_1 = zeros(1, dtype=torch.long)  # its number in the burst
        self.uniforms_TB = zeros(BURST, slots)
        self.tokens_TB, self.logits_TBV = zeros(BURST, slots, dtype=torch.long), zeros(BURST, slots, V)
        self._host_uniforms_TB = zeros(BURST, slots, host=True)
        self._host_active_B = zeros(slots, dtype=torch.long, host=True)
        self._host_tokens_TB = zeros(BURST, slots, dtype=torch.long, host=True)
        self._host_logits_TBV = zeros(BURST, slots, V, host=True)
        self._sequences: dict[int, _Sequence] = {}
        self._replays: dict[tuple[int, Stages], Replay] = {}

    @property
    def compiled(self) -> bool:
        """Whether steps are fused by PyTorch's compiler; False once that has failed."""
        return self._take_step != self._step

    def assign(self, slot: int, request: Request) -> None:
        self._sequences[slot] = _Sequence(request)
        with torch.no_grad():
            self.sampler.assign(slot, request)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        cache = self.static.cache
        read: dict[tuple[int, ...], tuple[KVCache, Tensor]] = {}
        for prompt in prompts:
            assert prompt.start == 0  # this engine has no `copy`
            if (key := tuple(prompt.tokens)) not in read:
                read.clear()  # one at a time, so that memory is bounded; equal prompts are adjacent
                read[key] = self._read(key)
            cache.fill(prompt.slot, read[key][0])
            self.logits_BV[prompt.slot] = read[key][1]
        return self._run([prompt.slot for prompt in prompts], [0])

    def _read(self, tokens: Sequence[int]) -> tuple[KVCache, Tensor]:
        """Return the cache of a prompt, and logits_V after its last token."""
        cache = KVCache(self.config, 1, self.device, self.model.token_embedding.weight.dtype)
        with evaluation_mode(self.model):
            return cache, self.model(torch.tensor([tokens], device=self.device), cache)[0, -1].float()

    @torch.no_grad()
    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        outputs = []
        for first in range(0, steps, BURST):
            count = min(BURST, steps - first)
            outputs.append(self._run(slots, [BURST] if count == BURST else [1] * count))
        if len(outputs) == 1:
            return outputs[0]
        tokens_TB = np.concatenate([output.tokens_TB for output in outputs])
        return StepOutput(tokens_TB, np.concatenate([output.logits_TBV for output in outputs]))

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        with evaluation_mode(self.model):
            return self.model(torch.tensor([list(tokens)], device=self.device))[0].float().cpu().numpy()

    @torch.no_grad()
    def static_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV as `decode` computes them, one token at a time in slot 0, which must be free."""
        cache, rows = self.static.cache, []
        cache.active_B.zero_()
        cache.active_B[0] = 1
        cache.positions_B[0] = 0
        for token in tokens:
            rows.append(self.static(torch.full_like(self.tokens_B, token))[0].float().cpu().numpy())
        cache.positions_B[0] = 0
        return np.stack(rows)

    def release(self, slot: int) -> None:
        self._sequences.pop(slot, None)

    def _run(self, slots: Sequence[int], counts: Sequence[int]) -> StepOutput:
        """Replay one graph for each count of steps, one after another, and return the results of these slots.

        The host waits for the device only at the end. The graph of 0 steps only chooses tokens, from `logits_BV`.
        """
        steps = sum(max(1, count) for count in counts)
        # Compiling takes long, so it is done once, for all stages.
        stages = ALL_STAGES if self.compiled else stages_of(self._sequences[slot].request for slot in slots)
        replays = [self.replay(count, stages) for count in counts]
        self._host_active_B.zero_()
        for slot in slots:
            self._host_active_B[slot] = 1
            self._host_uniforms_TB[:steps, slot] = torch.from_numpy(self._sequences[slot].uniforms(steps))
        self.static.cache.active_B.copy_(self._host_active_B, non_blocking=True)
        self.uniforms_TB.copy_(self._host_uniforms_TB, non_blocking=True)
        self.step_1.zero_()
        for replay in replays:
            replay()
        self._host_tokens_TB[:steps].copy_(self.tokens_TB[:steps], non_blocking=True)
        self._host_logits_TBV[:steps].copy_(self.logits_TBV[:steps], non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        rows = list(slots)
        return StepOutput(self._host_tokens_TB[:steps].numpy()[:, rows], self._host_logits_TBV[:steps].numpy()[:, rows])

    def _step(self, stages: Stages) -> None:
        """Run one step: compute the token chosen last in each slot, and choose the next one."""
        self.logits_BV.copy_(self.static(self.tokens_B))
        self._choose(stages)

    def _choose(self, stages: Stages) -> None:
        """Choose a token from `logits_BV` in each slot, and store both; idle slots keep their token."""
        active_B = self.static.cache.active_B
        uniform_B = self.uniforms_TB.index_select(0, self.step_1)[0]
        chosen_B = self.sampler.choose(self.logits_BV, uniform_B, stages)
        self.tokens_B.copy_(torch.where(active_B > 0, chosen_B, self.tokens_B))
        self.sampler.count(self.tokens_B, active_B)
        self.tokens_TB.index_copy_(0, self.step_1, self.tokens_B[None])
        self.logits_TBV.index_copy_(0, self.step_1, self.logits_BV[None])
        self.step_1.add_(1)

    def replay(self, count: int, stages: Stages) -> Replay:
        """Return a function that runs `count` steps: a graph, captured at the first use.

        Each set of stages has graphs of its own, because most requests use few stages. A request gets the same tokens
        from all of them.
        """
        if (count, stages) not in self._replays:

            def steps() -> None:
                for _ in range(count):
                    self._take_step(stages)
                if count == 0:
                    self._choose(stages)

            self._replays[count, stages] = self._captured(steps)
        return self._replays[count, stages]

    def _captured(self, steps: Replay) -> Replay:
        """Return the replay of these steps, or the steps themselves where graphs are not used or fail."""
        self.static.cache.active_B.zero_()  # so that no sequence advances
        if self.compiled:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's own: old names inside PyTorch, advice to use TF32
                    self._from_first_step(steps)
            except Exception as error:  # for example a missing compiler, an old GPU, a bug in the compiler
                self._on_status(f"generating without torch.compile, which failed ({first_line(error)})")
                self._take_step = self._step
        if self.graphs is not None:
            try:
                self.graphs.warm_up(lambda: self._from_first_step(steps))
                self.step_1.zero_()
                return self.graphs.capture(steps)
            except RuntimeError as error:
                self._on_status(
                    f"generating without CUDA graphs, which is slower: capturing failed ({first_line(error)})"
                )
                self.graphs = None
        return steps

    def _from_first_step(self, steps: Replay) -> None:
        self.step_1.zero_()
        steps()
