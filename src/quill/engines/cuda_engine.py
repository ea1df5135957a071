"""The quick engine for GPUs: many tokens of all places in one CUDA graph, the choice of each token included.

On the way text → tokens → model → training → generation → people this is what `--engine=auto` takes on a CUDA device.
A small model's token is some hundred small operations, and to start one from Python takes longer than to do it. So a
step is recorded once (`static_model.py` says why it can be) and replayed: 16 tokens are one call, the token that was
chosen feeds the next step without leaving the device, and what was written comes back once a burst. Each step computes
all places, whoever writes: its shapes never change, so what a place gives does not depend on the others.

Reference: Gray 2019, "Getting Started with CUDA Graphs" (NVIDIA); Nguyen et al. 2021, "Accelerating PyTorch with CUDA
Graphs". How it is made fast: docs/speed.md.

Shapes: T steps, B places, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quill.engines.base import PrefillInput, StepOutput
from quill.engines.random_numbers import uniforms
from quill.engines.request import Request
from quill.engines.sampling import ALL_STAGES, BatchSampler, Stages, stages_of
from quill.engines.static_model import StaticModel
from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.modes import evaluation_mode

BURST = 16  # steps of the longest recording
UNIFORMS_AT_ONCE = 256  # tokens

Replay = Callable[[], None]


@dataclass
class _Place:
    """The request of a place, and the random numbers that it will need next."""

    request: Request
    written: int = 0
    ahead: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def uniforms(self, steps: int) -> np.ndarray:
        """Return the uniforms of the next tokens, shape (T,)."""
        if len(self.ahead) < steps:
            start, count = self.written + len(self.ahead), max(steps, UNIFORMS_AT_ONCE)
            more_T = uniforms(self.request.seed, [self.request.row], start, count)[:, 0]
            self.ahead = np.concatenate([self.ahead, more_T])
        now_T, self.ahead = np.split(self.ahead, [steps])
        self.written += steps
        return now_T


class CudaEngine:
    """Engine by CUDA graphs, as `engine.Engine` says, with the weights as they are (fp32 in every checkpoint).

    `graphs` says whether steps are recorded; without, they run one operation after another, on any device. `compiled`
    lets PyTorch's compiler fuse the operations of a step first, which takes a while: for who writes very much. Where
    either fails, `on_status` is given one sentence, and the step goes on as it would without.
    """

    burst = BURST
    copy = None  # a matrix product of another size may round differently, so whoever begins alike reads for itself

    @torch.inference_mode(False)  # what is made in that mode may not be changed outside of it
    def __init__(
        self,
        model: Model,
        *,
        slots: int = 1,
        graphs: bool | None = None,
        compiled: bool = False,
        on_status: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.config, self.slots, self.context = model, model.config, slots, model.config.block_size
        self.rolls = model.config.rolling_window > 0
        self.device = model.token_embedding.weight.device
        on_gpu = self.device.type == "cuda"
        self.graphs = on_gpu if graphs is None else graphs
        self._on_status = on_status or _to_stderr
        V = self.config.vocab_size
        self.static = StaticModel(model, slots)
        self.sampler = BatchSampler(slots, V, self.device)
        self._take_step: Callable[[Stages], None] = self._step
        if compiled:
            # Tuned so, a product with a single row is fused with what stands around it (gpt-fast does the same).
            self._take_step = torch.compile(
                self._step, fullgraph=True, dynamic=False, options={"coordinate_descent_tuning": True}
            )

        def zeros(*shape: int, dtype: torch.dtype = torch.float32, host: bool = False) -> Tensor:
            # Pinned memory is what a GPU can write to while the host does something else.
            return torch.zeros(shape, dtype=dtype, device="cpu" if host else self.device, pin_memory=host and on_gpu)

        self.tokens_B = zeros(slots, dtype=torch.long)  # chosen last
        self.logits_BV = zeros(slots, V)  # of the step
        self.turn_1 = zeros(1, dtype=torch.long)  # which step of the burst it is
        self.uniforms_TB = zeros(BURST, slots)
        self.tokens_TB, self.logits_TBV = zeros(BURST, slots, dtype=torch.long), zeros(BURST, slots, V)
        self._host_uniforms_TB = zeros(BURST, slots, host=True)
        self._host_active_B = zeros(slots, dtype=torch.long, host=True)
        self._host_tokens_TB = zeros(BURST, slots, dtype=torch.long, host=True)
        self._host_logits_TBV = zeros(BURST, slots, V, host=True)
        self._places: dict[int, _Place] = {}
        self._recordings: dict[tuple[int, Stages], Replay] = {}
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None

    def assign(self, slot: int, request: Request) -> None:
        self._places[slot] = _Place(request)
        with torch.no_grad():
            self.sampler.assign(slot, request)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        cache = self.static.cache
        read: dict[tuple[int, ...], tuple[KVCache, Tensor]] = {}
        for prompt in prompts:
            assert prompt.start == 0  # nothing is copied
            if (key := tuple(prompt.tokens)) not in read:
                read.clear()  # one at a time, so that memory is bounded; equal prompts come one after another
                read[key] = self._read(key)
            cache.fill(prompt.slot, read[key][0])
            self.logits_BV[prompt.slot] = read[key][1]
        return self._write([prompt.slot for prompt in prompts], [0])

    def _read(self, tokens: Sequence[int]) -> tuple[KVCache, Tensor]:
        """Read a prompt by itself; return what attention remembers, and the scores logits_V of what follows."""
        cache = KVCache(self.config, 1, self.device, self.model.token_embedding.weight.dtype)
        with evaluation_mode(self.model):
            return cache, self.model(torch.tensor([tokens], device=self.device), cache)[0, -1].float()

    @torch.no_grad()
    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        written = []
        for first in range(0, steps, BURST):
            count = min(BURST, steps - first)
            written.append(self._write(slots, [BURST] if count == BURST else [1] * count))
        if len(written) == 1:
            return written[0]
        tokens_TB = np.concatenate([one.tokens_TB for one in written])
        return StepOutput(tokens_TB, np.concatenate([one.logits_TBV for one in written]))

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
        self._places.pop(slot, None)

    def _write(self, slots: Sequence[int], counts: Sequence[int]) -> StepOutput:
        """Replay recordings of so many steps each, one after another, and return what was written in these places.

        Nothing waits for the device in between. The recording of 0 steps only chooses, from `logits_BV` as it is.
        """
        steps = sum(max(1, count) for count in counts)
        # To compile takes long, so that is done once, for all stages.
        compiled = self._take_step != self._step
        stages = ALL_STAGES if compiled else stages_of(self._places[slot].request for slot in slots)
        recordings = [self._recording(count, stages) for count in counts]
        self._host_active_B.zero_()
        for slot in slots:
            self._host_active_B[slot] = 1
            self._host_uniforms_TB[:steps, slot] = torch.from_numpy(self._places[slot].uniforms(steps))
        self.static.cache.active_B.copy_(self._host_active_B, non_blocking=True)
        self.uniforms_TB.copy_(self._host_uniforms_TB, non_blocking=True)
        self.turn_1.zero_()
        for replay in recordings:
            replay()
        self._host_tokens_TB[:steps].copy_(self.tokens_TB[:steps], non_blocking=True)
        self._host_logits_TBV[:steps].copy_(self.logits_TBV[:steps], non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        rows = list(slots)
        return StepOutput(self._host_tokens_TB[:steps].numpy()[:, rows], self._host_logits_TBV[:steps].numpy()[:, rows])

    def _step(self, stages: Stages) -> None:
        """Read the token chosen last in each place, and choose the next one."""
        self.logits_BV.copy_(self.static(self.tokens_B))
        self._choose(stages)

    def _choose(self, stages: Stages) -> None:
        """Choose a token from `logits_BV` in each place, and note down both; idle places keep the one they had."""
        active_B = self.static.cache.active_B
        uniform_B = self.uniforms_TB.index_select(0, self.turn_1)[0]
        chosen_B = self.sampler.choose(self.logits_BV, uniform_B, stages)
        self.tokens_B.copy_(torch.where(active_B > 0, chosen_B, self.tokens_B))
        self.sampler.count(self.tokens_B, active_B)
        self.tokens_TB.index_copy_(0, self.turn_1, self.tokens_B[None])
        self.logits_TBV.index_copy_(0, self.turn_1, self.logits_BV[None])
        self.turn_1.add_(1)

    def _recording(self, count: int, stages: Stages) -> Replay:
        """Return what does so many steps: a recording, made when it is first asked for; 0 steps are a choice alone.

        Each set of stages has recordings of its own, because most requests want few of them, and each is some
        operations. Whichever is taken, a request gets the same token.
        """
        if (count, stages) not in self._recordings:

            def steps() -> None:
                for _ in range(count):
                    self._take_step(stages)
                if count == 0:
                    self._choose(stages)

            self._recordings[count, stages] = self._prepare(steps)
        return self._recordings[count, stages]

    def _prepare(self, steps: Replay) -> Replay:
        """Record these steps, if that is wished and can be done."""
        self.static.cache.active_B.zero_()  # no text moves on meanwhile
        if self._take_step != self._step:
            try:
                self._rehearse(steps)
            except Exception as error:  # a missing compiler, an old GPU, a bug in the compiler: all end here
                self._on_status(f"writing without torch.compile, which failed ({_first_line(error)})")
                self._take_step = self._step
        if self.graphs:
            try:
                return self._record(steps)
            except RuntimeError as error:
                self._on_status(
                    f"writing without CUDA graphs, which is slower: recording failed ({_first_line(error)})"
                )
                self.graphs = False
        return steps

    def _rehearse(self, steps: Replay) -> None:
        self.turn_1.zero_()
        steps()

    def _record(self, steps: Replay) -> Replay:
        """Return what replays these steps as one CUDA graph."""
        stream, graph = torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries choose their kernels and ask for memory the first time
            self._rehearse(steps)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        # Nothing that is needed later lies in the memory that all recordings share. Other threads may go on.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            steps()
        return graph.replay


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _to_stderr(message: str) -> None:
    """Say something to who runs this program."""
    print(f"quill: {message}", file=sys.stderr, flush=True)
