"""The quick engine for CPUs: the whole step of `compiled/step.py`, many tokens a call, on all threads at once.

On the way text → tokens → model → training → generation → people this is what `--engine=auto` takes on a CPU. It keeps
the texts, gives the compiled step its rows, and holds the threads that run it. The step is compiled once for a machine
and stored (`compiled/code.py`).

Reference: Lam, Pitrou & Seibert 2015, "Numba: A LLVM-based Python JIT Compiler". How it is made fast: docs/speed.md.

Shapes: T steps, B texts, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from quill.device import cpu_threads
from quill.engines.base import PrefillInput, StepOutput
from quill.engines.numba_step.object_cache import load_step, table_of
from quill.engines.numba_step.packing import make_work, pack_model, whole_panels
from quill.engines.numba_step.workspace import PANEL, SLEEPS, Call, Everything, Sampler
from quill.engines.random_numbers import uniforms
from quill.engines.request import Request
from quill.engines.thread_team import ThreadTeam
from quill.model.config import ModelConfig

SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
ROWS = 256  # tokens of a prompt that are read at once, so that each weight is fetched once for all of them
WORTH_THREADS = 2**16  # multiplications in a layer: with fewer, threads wait for each other longer than they compute
SLEEPS_PER_STEP = 2  # more than so many mean that another program has a core
CALLS_ALONE = 64  # then one thread computes, until the others are tried again
COMPILING = "compiling for this processor, which takes some seconds the first time"


class NumbaEngine:
    """Engine by Numba, as `engine.Engine` says: float32 or int8 weights, on as many threads as PyTorch has."""

    burst = 16

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        *,
        quantization: str | None = None,
        slots: int = 1,
        threads: int | None = None,
        on_status: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.slots, self.context = config, slots, config.block_size
        self.rolls = config.rolling_window > 0
        self.shape, self.weights = pack_model(config, arrays, quantization)
        most = min(cpu_threads(), self.weights.feed_forward_hidden.panels)  # more would only wait
        self.threads, self._fixed_threads = threads or most, threads is not None
        self.work = make_work(self.shape, slots + 1, max(ROWS, slots), self.threads)
        V, places = self.config.vocab_size, slots + 1
        self.sampler = Sampler(
            temperature_B=np.zeros(places, np.float32),
            top_k_B=np.zeros(places, np.int64),
            top_p_B=np.zeros(places, np.float32),
            min_p_B=np.zeros(places, np.float32),
            presence_B=np.zeros(places, np.float32),
            frequency_B=np.zeros(places, np.float32),
            repetition_B=np.zeros(places, np.float32),
            plain_B=np.ones(places, np.bool_),
            bias_BV=np.zeros((places, V), np.float32),
            seen_BV=np.zeros((places, V), np.bool_),
            counts_BV=np.zeros((places, V), np.int32),
        )
        self._requests: dict[int, tuple[Request, int]] = {}  # and how many tokens each has chosen
        self._next: dict[int, tuple[int, int]] = {}  # the token chosen last, and its place in the text
        self._layer_size = 12 * config.n_embd**2
        self._team = ThreadTeam(self.threads)
        self._alone = 0  # calls for which one thread is enough, because the others get no core
        state = (self.shape, self.weights, self.work, self.sampler)
        self._state = table_of(state)
        example = Everything(self._call(np.zeros(0, np.int64), 0, 0, 1), *state)
        self._step = load_step(quantization or "float32", example, lambda: (on_status or to_stderr)(COMPILING))

    def assign(self, slot: int, request: Request) -> None:
        self._team.wait()
        s, how, V = self.sampler, request.sampling, self.config.vocab_size
        s.temperature_B[slot] = max(how.temperature, SMALLEST_TEMPERATURE) if how.temperature else 0
        s.top_k_B[slot] = min(how.top_k or V, V)
        s.top_p_B[slot] = 1 if how.top_p is None else how.top_p
        s.min_p_B[slot] = math.log(how.min_p) if how.min_p else -math.inf
        s.presence_B[slot], s.frequency_B[slot] = how.presence_penalty, how.frequency_penalty
        s.repetition_B[slot] = how.repetition_penalty
        penalties = (how.presence_penalty, how.frequency_penalty, how.repetition_penalty - 1)
        s.plain_B[slot] = not request.logit_bias and not any(penalties)
        s.bias_BV[slot] = 0
        for token, bias in request.logit_bias.items():
            s.bias_BV[slot, token] = bias
        s.seen_BV[slot] = False
        s.seen_BV[slot, list(request.prompt)] = True
        s.counts_BV[slot] = 0
        self._requests[slot] = (request, 0)

    # Each row is computed by itself, so what is copied is bit for bit what would be computed again.
    def copy(self, source: int, target: int, length: int) -> None:
        self._team.wait()
        shape, work = self.shape, self.work
        sizes = (-1, shape.n_layer * shape.n_kv_head)
        panels = whole_panels(length) // PANEL
        keys = work.keys.reshape(*sizes, shape.capacity // PANEL, shape.head_size, PANEL)
        values = work.values.reshape(*sizes, whole_panels(shape.head_size) // PANEL, shape.capacity, PANEL)
        keys[target, :, :panels] = keys[source, :, :panels]
        values[target, :, :, :length] = values[source, :, :, :length]
        history = work.history.reshape(-1, shape.capacity)
        history[target, :length] = history[source, :length]

    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        read = list(self._read(prompts, whole=False))
        tokens_1B = np.concatenate([written.tokens_TB for written in read], axis=1)
        for prompt, token in zip(prompts, tokens_1B[0].tolist(), strict=True):
            self._next[prompt.slot] = (token, prompt.start + len(prompt.tokens))
        return StepOutput(tokens_1B, np.concatenate([written.logits_TBV for written in read], axis=1))

    def _read(self, prompts: Sequence[PrefillInput], whole: bool) -> Iterator[StepOutput]:
        """Read texts end to end, some rows at a time; keep the scores of all tokens, or of each text's last one."""
        lengths = [len(prompt.tokens) for prompt in prompts]
        tokens = np.concatenate([np.array(prompt.tokens, np.int64) for prompt in prompts])
        slots = np.repeat([prompt.slot for prompt in prompts], lengths)
        places = np.concatenate([np.arange(prompt.start, prompt.start + len(prompt.tokens)) for prompt in prompts])
        kept = np.full(len(tokens), whole)
        kept[np.cumsum(lengths) - 1] = True
        history = self.work.history.reshape(-1, self.shape.capacity)
        for first in range(0, len(tokens), ROWS):
            known, part = slice(max(0, first - self.context), first + ROWS), slice(first, first + ROWS)
            history[slots[known], places[known]] = tokens[known]
            yield self._run(tokens[part], slots[part], places[part], kept[part].nonzero()[0], 1)

    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        tokens, positions = np.array([self._next[slot] for slot in slots]).T
        written = self._run(tokens, np.array(slots), positions, np.arange(len(slots)), steps)
        for slot, token, position in zip(slots, written.tokens_TB[-1].tolist(), positions.tolist(), strict=True):
            self._next[slot] = (token, position + steps)
        return written

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV; where positions roll, tokens past the context too, which are read one at a time."""
        scratch, context = np.array([self.slots]), self.context  # a slot of its own
        steps = list(self._read([PrefillInput(self.slots, tokens[:context], 0)], whole=True))
        for position in range(context, len(tokens)):
            token, first_row = np.array([tokens[position]]), np.array([0])
            steps.append(self._run(token, scratch, np.array([position]), first_row, 1))
        return np.concatenate([step.logits_TBV[0] for step in steps])

    def release(self, slot: int) -> None:
        self._requests.pop(slot, None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are read."""
        matrices = [field for field in self.weights if isinstance(field, tuple)]
        arrays = [
            field for field in (*self.weights, *(a for m in matrices for a in m)) if isinstance(field, np.ndarray)
        ]
        return sum(array.nbytes for array in arrays)

    def _run(
        self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray, kept: np.ndarray, steps: int
    ) -> StepOutput:
        work, rows = self.work, len(tokens)
        self._team.wait()
        threads = self.threads_for(rows)
        call = self._call(kept, steps, rows, threads)
        work.tokens[:rows], work.slots[:rows], work.positions[:rows] = tokens, slots, positions
        for column, slot in enumerate(slots[kept].tolist()):
            if slot == self.slots:
                continue
            request, count = self._requests[slot]
            call.uniforms_TB[:, column] = uniforms(request.seed, [request.row], count, steps)[:, 0]
            self._requests[slot] = (request, count + steps)
        table = np.concatenate([table_of(call), self._state])
        address = table.ctypes.data
        if threads == 1:
            self._step(0, address)
            return StepOutput(call.tokens_TB, call.logits_TBV)
        counters = work.counters.reshape(-1, 8)
        counters[:, 0] = 0  # what they count up to depends on the number of threads
        before = counters[1:, SLEEPS].sum()
        # The threads know addresses only. A caller that is interrupted twice drops its arrays while they still work.
        self._team.run(lambda thread, _alive=(call, table): self._step(thread, address))
        if steps > 1 and counters[1:, SLEEPS].sum() - before > SLEEPS_PER_STEP * steps:
            self._alone = CALLS_ALONE
        return StepOutput(call.tokens_TB, call.logits_TBV)

    def threads_for(self, rows: int) -> int:
        """Return how many threads compute a step of so many rows: one where others would wait more than work."""
        if not self._fixed_threads:
            if rows * self._layer_size < WORTH_THREADS:
                return 1
            if self._alone > 0:
                self._alone -= 1
                return 1
        return self._team.start()

    def _call(self, kept: np.ndarray, steps: int, rows: int, threads: int) -> Call:
        """Return room for what is to be written."""
        T, B, V = steps, len(kept), self.config.vocab_size
        return Call(
            threads=threads,
            steps=steps,
            rows=rows,
            kept=kept,
            uniforms_TB=np.zeros((T, B)),
            tokens_TB=np.zeros((T, B), np.int64),
            logits_TBV=np.zeros((T, B, V), np.float32),
        )


def to_stderr(message: str) -> None:
    """Say something to who runs this program."""
    print(f"quill: {message}", file=sys.stderr, flush=True)
