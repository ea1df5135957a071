"""The fast engine for CPUs: many tokens a call by the compiled step, on all threads together.

It keeps the state of the sequences, gives the compiled step (`numba_step/`) its rows, and holds the threads that run
it. The step is compiled once for a machine and stored.

Source: Lam, Pitrou & Seibert 2015, "Numba: A LLVM-based Python JIT Compiler". How it is made fast: docs/speed.md.

Shapes: T steps, B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quill.device import cpu_threads
from quill.engines.base import PrefillInput, StepOutput, print_status
from quill.engines.numba_step.object_cache import load_step, words_of
from quill.engines.numba_step.packing import make_workspace, pack_model, whole_panels
from quill.engines.numba_step.workspace import PANEL, SLEEPS, Call, KernelArgs, Sampler
from quill.engines.random_numbers import uniforms
from quill.engines.request import Request
from quill.engines.thread_team import ThreadTeam
from quill.model.config import ModelConfig

SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
ROWS = 256  # tokens of a prompt that are read at once, so that each weight is loaded once for all of them
WORTH_THREADS = 2**16  # multiplications in a layer: with fewer, threads wait for each other longer than they compute
SLEEPS_PER_STEP = 2  # more than this mean that another program uses a core
CALLS_ALONE = 4, 64  # number of calls that then use one thread before all are tried again: at first, and at most
COMPILING = "compiling for this processor, which takes some seconds the first time"


@dataclass
class _Sequence:
    """A request, how many random numbers it has used, and its last token with its position."""

    request: Request
    num_drawn: int = 0
    token: int = 0
    position: int = 0


class NumbaEngine:
    """An `Engine` by Numba, with float32 or int8 weights.

    `threads` fixes the number of threads. By default it is that of PyTorch, but one for small steps, in which the
    others would only wait, and while another program uses their cores. Results are bit-identical for any number.
    `on_pass` is called with the number of rows of each pass through the model.
    """

    prefers_idle_cores = True
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
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.slots, self.context = config, slots, config.block_size
        self.rolls = config.rolling_window > 0
        self.shape, self.weights = pack_model(config, arrays, quantization)
        most = min(cpu_threads(), self.weights.feed_forward_hidden.panels)  # more would have no work
        self.threads, self._fixed_threads = threads or most, threads is not None
        rows = slots + 1  # the last one is scratch, for `logits`
        self.work = make_workspace(self.shape, rows, max(ROWS, slots), self.threads)
        V = self.config.vocab_size
        self.sampler = Sampler(
            temperature_B=np.zeros(rows, np.float32),
            top_k_B=np.zeros(rows, np.int64),
            top_p_B=np.zeros(rows, np.float32),
            min_p_B=np.zeros(rows, np.float32),
            presence_B=np.zeros(rows, np.float32),
            frequency_B=np.zeros(rows, np.float32),
            repetition_B=np.zeros(rows, np.float32),
            plain_B=np.ones(rows, np.bool_),
            bias_BV=np.zeros((rows, V), np.float32),
            seen_BV=np.zeros((rows, V), np.bool_),
            counts_BV=np.zeros((rows, V), np.int32),
        )
        self.sequences: dict[int, _Sequence] = {}
        self._layer_size = 12 * config.n_embd**2
        self._on_pass = on_pass
        self.team = ThreadTeam(self.threads)
        self._calls_alone, self._next_alone = 0, CALLS_ALONE[0]
        state = (self.shape, self.weights, self.work, self.sampler)
        self._state = words_of(state)
        example = KernelArgs(self._call(np.zeros(0, np.int64), 0, 0, 1), *state)
        self.step = load_step(quantization or "float32", example, lambda: (on_status or print_status)(COMPILING))

    def assign(self, slot: int, request: Request) -> None:
        self.team.wait()
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
        self.sequences[slot] = _Sequence(request)

    # Each row is computed by itself, so a copy is bit-identical to computing it again.
    def copy(self, source: int, target: int, length: int) -> None:
        self.team.wait()
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
        outputs = list(self._read(prompts, all_logits=False))
        tokens_1B = np.concatenate([output.tokens_TB for output in outputs], axis=1)
        for prompt, token in zip(prompts, tokens_1B[0].tolist(), strict=True):
            sequence = self.sequences[prompt.slot]
            sequence.token, sequence.position = token, prompt.start + len(prompt.tokens)
        return StepOutput(tokens_1B, np.concatenate([output.logits_TBV for output in outputs], axis=1))

    def _read(self, prompts: Sequence[PrefillInput], all_logits: bool) -> Iterator[StepOutput]:
        """Prefill prompts one after another, `ROWS` tokens at a time; yield logits of all tokens or the last ones."""
        lengths = [len(prompt.tokens) for prompt in prompts]
        tokens = np.concatenate([np.array(prompt.tokens, np.int64) for prompt in prompts])
        slots = np.repeat([prompt.slot for prompt in prompts], lengths)
        positions = np.concatenate([np.arange(prompt.start, prompt.start + len(prompt.tokens)) for prompt in prompts])
        kept = np.full(len(tokens), all_logits)
        kept[np.cumsum(lengths) - 1] = True
        history = self.work.history.reshape(-1, self.shape.capacity)
        for first in range(0, len(tokens), ROWS):
            known, rows = slice(max(0, first - self.context), first + ROWS), slice(first, first + ROWS)
            history[slots[known], positions[known]] = tokens[known]
            yield self._run(tokens[rows], slots[rows], positions[rows], kept[rows].nonzero()[0], 1)

    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        sequences = [self.sequences[slot] for slot in slots]
        tokens, positions = np.array([(sequence.token, sequence.position) for sequence in sequences]).T
        output = self._run(tokens, np.array(slots), positions, np.arange(len(slots)), steps)
        for sequence, token in zip(sequences, output.tokens_TB[-1].tolist(), strict=True):
            sequence.token, sequence.position = token, sequence.position + steps
        return output

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV; if positions roll, also past the context, one token at a time."""
        scratch, context = self.slots, self.context
        outputs = list(self._read([PrefillInput(scratch, tokens[:context], 0)], all_logits=True))
        for position in range(context, len(tokens)):
            row = (np.array([value]) for value in (tokens[position], scratch, position, 0))
            outputs.append(self._run(*row, steps=1))
        return np.concatenate([output.logits_TBV[0] for output in outputs])

    def release(self, slot: int) -> None:
        self.sequences.pop(slot, None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in memory."""
        matrices = [field for field in self.weights if isinstance(field, tuple)]
        arrays = [
            field for field in (*self.weights, *(a for m in matrices for a in m)) if isinstance(field, np.ndarray)
        ]
        return sum(array.nbytes for array in arrays)

    def threads_for(self, rows: int) -> int:
        """Return how many threads the next call uses for steps of `rows` rows."""
        if not self._fixed_threads:
            if rows * self._layer_size < WORTH_THREADS:
                return 1
            if self._calls_alone > 0:
                self._calls_alone -= 1
                return 1
        return self.team.start()

    def _run(
        self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray, kept: np.ndarray, steps: int
    ) -> StepOutput:
        """Run the compiled step on these rows, and `steps - 1` times on the rows in `kept` with their new tokens."""
        work, rows = self.work, len(tokens)
        self.team.wait()
        threads = self.threads_for(rows)
        call = self._call(kept, steps, rows, threads)
        work.tokens[:rows], work.slots[:rows], work.positions[:rows] = tokens, slots, positions
        for column, slot in enumerate(slots[kept].tolist()):
            if slot == self.slots:  # scratch
                continue
            sequence = self.sequences[slot]
            seed, row = sequence.request.seed, sequence.request.row
            call.uniforms_TB[:, column] = uniforms(seed, [row], sequence.num_drawn, steps)[:, 0]
            sequence.num_drawn += steps
        arguments = np.concatenate([words_of(call), self._state])
        self._run_threads(call, arguments)
        if self._on_pass is not None:
            for count in (rows, *[len(kept)] * (steps - 1)):
                self._on_pass(count)
        return StepOutput(call.tokens_TB, call.logits_TBV)

    def _run_threads(self, call: Call, arguments: np.ndarray) -> None:
        address = arguments.ctypes.data
        if call.threads == 1:
            self.step(0, address)
            return
        counters = self.work.counters.reshape(-1, 8)
        counters[0] = counters[1:, 0] = 0  # numbers of waits, which count for one number of threads
        sleeps = counters[1:, SLEEPS].sum()
        # The step gets addresses only: _alive keeps the arrays while threads use them, if the caller was interrupted.
        self.team.run(lambda thread, _alive=(call, arguments): self.step(thread, address))
        if call.steps > 1:
            hindered = counters[1:, SLEEPS].sum() - sleeps > SLEEPS_PER_STEP * call.steps
            self._calls_alone = self._next_alone if hindered else 0
            self._next_alone = min(2 * self._next_alone, CALLS_ALONE[1]) if hindered else CALLS_ALONE[0]

    def _call(self, kept: np.ndarray, steps: int, rows: int, threads: int) -> Call:
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
