"""The loop of generation: requests go in at any time, and come out token by token, many of them computed together.

It knows tokens only; text, stop strings and prompts belong to `language_model.py`. Which request runs is decided in
`scheduler.py`, and the arithmetic is an engine's.

Past the trained context the cost of a token stays bounded. A modern model has rotary positions, which have no end: its
window rolls, each token takes the place of the oldest, and the model sees the last `rolling_window` tokens, three
quarters of `block_size`. A classic model has learned positions for `block_size` tokens, which are part of its cached
keys. When its slot is full, the last `block_size // 2` tokens are read again, so it always sees at least that half.

Readers need not keep up. A request whose reader leaves `LEAD` tokens unread is paused; it gives up its slot when
another request waits for one, and is computed again from its prompt when its reader comes back.

A step is committed whole or not at all. If an exception ends it, Ctrl-C for example, the next step computes every
running sequence again from its prompt. What readers have got already is not handed out twice.

Reference: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3.1.

Shapes: T steps, B sequences, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from quill.engines.base import Engine, PrefillInput, StepOutput
from quill.engines.request import Request, TokenEvent, is_whole, python_number
from quill.errors import CheckpointError
from quill.generation.logprobs import with_logprobs
from quill.generation.scheduler import Admission, RunningSequence, Scheduler
from quill.process import lock_freed_by_fork
from quill.validation import require

LEAD = 128  # tokens that a row may be ahead of its reader

END = 2**63  # the index of an event that comes after all tokens
AFTER_END = END + 1

Indexed = tuple[int, TokenEvent]
"""an event and the number of its token in the row, by which a reader drops what comes twice"""


@dataclass
class _Inbox:
    """The events of one reader that it has not read yet."""

    limit: int
    rows: dict[int, int] = field(default_factory=dict)  # request id: row
    events: deque[Indexed] = field(default_factory=deque)
    parked: deque[int] = field(default_factory=deque)

    @property
    def full(self) -> bool:
        return len(self.events) >= self.limit


class BatchGenerator:
    """Writes many sequences together with one engine. What a request gets does not depend on the others.

    All methods may be called from several threads.
    """

    def __init__(self, engine: Engine, max_waiting: int | None = None) -> None:
        self.engine = engine
        shares = engine.copy is not None
        self.scheduler = Scheduler(engine.slots, engine.context, max_waiting, shares_prefixes=shares)
        self._burst = 1
        self._request_ids = itertools.count()
        self._inboxes: dict[int, _Inbox] = {}
        self._cancelled: deque[int] = deque()
        self._step_failed = False
        self._lock = lock_freed_by_fork()

    def follow(self, requests: Sequence[Request]) -> Generator[tuple[int, TokenEvent]]:
        """Add requests and yield their events, each as its row (the place in `requests`) and the event, until all end.

        Asking for the next event lets all sequences write on, so several readers may take turns, from several threads
        too. When the iterator is closed or deleted, its requests are cancelled. A token outside the vocabulary is a
        ConfigError.
        """
        checked: set[int] = set()
        for request in requests:
            if id(request.prompt) not in checked:  # rows of one prompt share it
                self._check(request)
                checked.add(id(request.prompt))
        return self._follow(requests)

    def _follow(self, requests: Sequence[Request]) -> Generator[tuple[int, TokenEvent]]:
        inbox = _Inbox(limit=LEAD * max(1, min(len(requests), self.engine.slots)))
        events, rows = inbox.events, inbox.rows
        try:
            with self._lock:
                for row, request in enumerate(requests):
                    self._add(request, row, inbox)
            num_read = dict.fromkeys(rows, 0)  # of the requests that have not ended
            while num_read:
                with self._lock:
                    if not events:
                        self._step(inbox)
                while events:
                    index, event = events.popleft()
                    request_id = event.request_id
                    if index < num_read.get(request_id, AFTER_END):
                        continue
                    num_read[request_id] = index + 1
                    if event.finish_reason is not None:
                        del num_read[request_id]
                    yield rows[request_id], event
        finally:
            # Garbage collection runs this in any thread, in the middle of a step too: no lock may be taken here.
            self._cancelled.extend(inbox.rows)

    def add(self, request: Request) -> int:
        """Let a request begin as soon as a slot is free, and return its id. A full queue is a BusyError."""
        self._check(request)
        with self._lock:
            return self._add(request)

    def _add(self, request: Request, row: int = 0, inbox: _Inbox | None = None) -> int:
        self._apply_cancellations()
        self.scheduler.require_room()
        request_id = next(self._request_ids)
        if inbox is not None:
            inbox.rows[request_id] = row
            self._inboxes[request_id] = inbox
        self.scheduler.add(request_id, request.for_engine(self.engine.config.vocab_size))
        return request_id

    def _check(self, request: Request) -> None:
        vocab_size = self.engine.config.vocab_size
        for token in (*request.prompt, *request.logit_bias):
            valid = is_whole(python_number(token)) and 0 <= token < vocab_size
            require(valid, "token", token, f"a whole number from 0 to {vocab_size - 1}")

    def cancel(self, request_id: int) -> None:
        """End a request before the next step, whether it writes or waits; one that has ended stays as it is."""
        self._cancelled.append(request_id)
        if (inbox := self._inboxes.get(request_id)) is not None:
            inbox.events.append((END, TokenEvent(request_id, None, "cancelled")))

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        with self._lock:
            self._apply_cancellations()
            return self.scheduler.busy

    def step(self) -> list[TokenEvent]:
        """Let waiting requests begin, and all write on by one burst of tokens. Events are in the order of writing."""
        with self._lock:
            return self._step()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV of up to `context` tokens, by the weights that texts are written with."""
        with self._lock:
            return self.engine.logits(tokens)

    def _step(self, reader: _Inbox | None = None) -> list[TokenEvent]:
        if self._step_failed:
            self._restart()
        self._step_failed = True
        self._apply_cancellations()
        self._share_slots(reader)
        events = self._write()
        self._commit(events)
        self._step_failed = False
        return [event for _, event in events]

    def _restart(self) -> None:
        for sequence in self.scheduler.running.values():
            self.engine.release(sequence.slot)
        for inbox in self._inboxes.values():
            inbox.parked.clear()
        self.scheduler.restart()

    def _apply_cancellations(self) -> None:
        while self._cancelled:
            request_id = self._cancelled[0]
            self._inboxes.pop(request_id, None)
            self._release(self.scheduler.leave(request_id))
            self._cancelled.popleft()  # last, so that an interruption loses none

    def _share_slots(self, reader: _Inbox | None) -> None:
        """Resume the requests of the reader that asks, and pause those whose readers are behind."""
        for _ in range(min(self.engine.slots, len(reader.parked)) if reader else 0):
            assert reader is not None
            self.scheduler.resume(reader.parked.popleft())
        for request_id, sequence in self.scheduler.running.items():
            sequence.paused = self._is_behind(request_id)

    def _admit(self) -> Admission | None:
        """Admit a request whose reader is not behind, in the slot of a paused one if there is no other."""
        waiting = self.scheduler.waiting
        while waiting and self._is_behind(request_id := next(iter(waiting))):
            self._park(request_id)
        if (paused := self.scheduler.in_the_way()) is not None:
            self._park(paused)
        return self.scheduler.admit()

    def _is_behind(self, request_id: int) -> bool:
        inbox = self._inboxes.get(request_id)
        return inbox is not None and inbox.full

    def _park(self, request_id: int) -> None:
        self._inboxes[request_id].parked.append(request_id)
        self._release(self.scheduler.park(request_id))

    def _write(self) -> list[Indexed]:
        events = []
        most = self.engine.slots * self.engine.burst  # very many short texts take several steps
        while len(events) < most and (admissions := list(iter(self._admit, None))):
            self._burst = 1  # a new request gets its first token at once
            events += [self._end(a.sequence) for a in admissions if a.sequence.remaining == 0]
            events += self._read([self._begin(a) for a in admissions if a.sequence.remaining])
        events += self._make_room()
        sequences = self.scheduler.writing()
        if steps := self.scheduler.steps(self._burst):
            events += self._take(sequences, self.engine.decode([sequence.slot for sequence in sequences], steps))
            self._burst = min(2 * self._burst, self.engine.burst)
        return events

    def _make_room(self) -> list[Indexed]:
        """Let full slots roll, or read the last half of their sequences again where they cannot."""
        full = [s for s in self.scheduler.writing() if not s.rolled and s.num_cached > self.engine.context]
        for sequence in full:
            sequence.rolled = self.engine.rolls
            if not sequence.rolled:
                sequence.start = len(sequence.tokens) - max(1, self.engine.context // 2)
        return self._read([(sequence, 0) for sequence in full if not sequence.rolled])

    def _begin(self, admission: Admission) -> tuple[RunningSequence, int]:
        """Prepare the slot of a sequence; return the sequence and how many of its tokens the slot holds by then."""
        sequence = admission.sequence
        self.engine.assign(sequence.slot, sequence.request)
        if admission.shared and admission.source != sequence.slot:
            assert self.engine.copy is not None  # or nothing would be shared
            self.engine.copy(admission.source, sequence.slot, admission.shared)
        return sequence, admission.shared

    def _read(self, sequences: Sequence[tuple[RunningSequence, int]]) -> list[Indexed]:
        """Read all tokens of sequences but the first ones, which their slots hold already."""
        if not sequences:
            return []
        prompts = [PrefillInput(s.slot, s.cached_tokens[held:], held) for s, held in sequences]
        return self._take([sequence for sequence, _ in sequences], self.engine.prefill(prompts))

    def _take(self, sequences: Sequence[RunningSequence], output: StepOutput) -> list[Indexed]:
        # Once a token and row: what can be looked up before the loops is.
        events: list[Indexed] = []
        rows = [
            (s.request_id, s.tokens, s.num_generated, s.num_generated + s.remaining - 1, s.open_request.num_committed,
             s.request.logprobs) for s in sequences
        ]  # fmt: skip
        for step, tokens_B in enumerate(output.tokens_TB.tolist()):
            for column, (request_id, tokens, start, last, num_committed, logprobs) in enumerate(rows):
                token_id, index = tokens_B[column], start + step
                if index == 0 and not np.isfinite(output.logits_TBV[step, column]).all():
                    raise CheckpointError(
                        "the model's scores are not finite numbers: its weights are damaged, use another checkpoint"
                    )
                tokens.append(token_id)
                if index < num_committed and index < last:
                    continue
                token = None
                if index >= num_committed:
                    token = with_logprobs(token_id, output.logits_TBV[step, column], logprobs)
                event = TokenEvent(request_id, token, None if index < last else "length")
                events.append((END if token is None else index, event))
        for sequence in sequences:
            sequence.num_generated += len(output.tokens_TB)
            if sequence.remaining == 0:
                self._release(self.scheduler.release(sequence.request_id))
        return events

    def _end(self, sequence: RunningSequence) -> Indexed:
        self._release(self.scheduler.release(sequence.request_id))
        return END, TokenEvent(sequence.request_id, None, "length")

    def _commit(self, events: Sequence[Indexed]) -> None:
        for index, event in events:
            if (inbox := self._inboxes.get(event.request_id)) is not None:
                inbox.events.append((index, event))
        for sequence in self.scheduler.running.values():
            sequence.open_request.num_committed = max(sequence.open_request.num_committed, sequence.num_generated)
        for _, event in events:
            if event.finish_reason is not None:
                self.scheduler.leave(event.request_id)

    def _release(self, sequence: RunningSequence | None) -> None:
        if sequence is not None:
            self.engine.release(sequence.slot)
