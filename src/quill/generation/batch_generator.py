"""The generation loop: requests are added at any time, computed together, and answered token by token.

It handles tokens only: text, stop strings and prompts are in `language_model.py`. `scheduler.py` decides which requests
run, and an engine computes them.

Past the trained context the cost of a token stays bounded. A modern model has rotary positions without a limit: its
window rolls, each token replaces the oldest, and attends to the last `rolling_window` tokens, three quarters of
`block_size`. A classic model has learned positions for `block_size` tokens, which are part of its cached keys. When its
slot is full, the last `block_size // 2` tokens are prefilled again, so a token attends to at least that half.

Readers may be slow. A request whose reader leaves `LEAD` tokens unread is paused; it loses its slot when another
request waits for one, and is computed again from its prompt when its reader continues.

A step is committed whole or not at all. If an exception ends it, such as Ctrl-C, the next step computes every running
sequence again from its prompt. Events that readers have already received are not repeated.

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
from quill.engines.request import Request, TokenEvent, is_whole
from quill.errors import CheckpointError
from quill.generation.logprobs import with_logprobs
from quill.generation.scheduler import Admission, RunningSequence, Scheduler
from quill.process import lock_freed_by_fork
from quill.validation import plain_number, require

LEAD = 128  # number of tokens that a row may be ahead of its reader

END = 2**63  # the index of an event that comes after all tokens
AFTER_END = END + 1

Indexed = tuple[int, TokenEvent]
"""an event and the index of its token in the row, by which a reader drops duplicates"""


@dataclass
class _Inbox:
    """The unread events of one reader."""

    limit: int
    rows: dict[int, int] = field(default_factory=dict)  # request id: row
    events: deque[Indexed] = field(default_factory=deque)
    parked: deque[int] = field(default_factory=deque)

    @property
    def full(self) -> bool:
        return len(self.events) >= self.limit


class BatchGenerator:
    """Generates many sequences together with one engine. The result of a request does not depend on the others.

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
        """Add requests and yield their events as (row, event), row being the index in `requests`, until all end.

        Each request for the next event may advance all sequences, so several readers may alternate, also in several
        threads. When the iterator is closed or deleted, its requests are cancelled. A token outside the vocabulary is a
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
            # The garbage collector may run this in any thread, even during a step: no lock may be taken here.
            self._cancelled.extend(inbox.rows)

    def add(self, request: Request) -> int:
        """Add a request to the queue, and return its id. A full queue is a BusyError."""
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
            valid = is_whole(plain_number(token)) and 0 <= token < vocab_size
            require(valid, "token", token, f"a whole number from 0 to {vocab_size - 1}")

    def cancel(self, request_id: int) -> None:
        """End a running or waiting request before the next step. Cancelling one that has ended does nothing."""
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
        """Admit waiting requests, advance all sequences by one burst of tokens, and return the events in order."""
        with self._lock:
            return self._step()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV of up to `context` tokens, computed by the engine that generates."""
        with self._lock:
            return self.engine.logits(tokens)

    def _step(self, reader: _Inbox | None = None) -> list[TokenEvent]:
        if self._step_failed:
            self._restart()
        self._step_failed = True
        self._apply_cancellations()
        self._share_slots(reader)
        events = self._advance()
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
            self._release(self.scheduler.end(request_id))
            self._cancelled.popleft()  # last, so that an interruption loses no cancellation

    def _share_slots(self, reader: _Inbox | None) -> None:
        """Resume the parked requests of the calling reader, and pause requests whose readers are behind."""
        for _ in range(min(self.engine.slots, len(reader.parked)) if reader else 0):
            assert reader is not None
            self.scheduler.resume(reader.parked.popleft())
        for request_id, sequence in self.scheduler.running.items():
            sequence.paused = self._is_behind(request_id)

    def _admit(self) -> Admission | None:
        """Admit a request whose reader is not behind, in the slot of a paused request if no other is free."""
        waiting = self.scheduler.waiting
        while waiting and self._is_behind(request_id := next(iter(waiting))):
            self._park(request_id)
        if (paused := self.scheduler.preemptible()) is not None:
            self._park(paused)
        return self.scheduler.admit()

    def _is_behind(self, request_id: int) -> bool:
        inbox = self._inboxes.get(request_id)
        return inbox is not None and inbox.full

    def _park(self, request_id: int) -> None:
        self._inboxes[request_id].parked.append(request_id)
        self._release(self.scheduler.park(request_id))

    def _advance(self) -> list[Indexed]:
        """Admit requests, prefill their slots, and decode one burst."""
        events = []
        most = self.engine.slots * self.engine.burst  # very many short sequences take several steps
        while len(events) < most and (admissions := list(iter(self._admit, None))):
            self._burst = 1  # a new request gets its first token at once
            events += [self._end(a.sequence) for a in admissions if a.sequence.remaining == 0]
            events += self._prefill([self._begin(a) for a in admissions if a.sequence.remaining])
        events += self._handle_full_slots()
        sequences = self.scheduler.active()
        if steps := self.scheduler.steps(self._burst):
            events += self._append(sequences, self.engine.decode([sequence.slot for sequence in sequences], steps))
            self._burst = min(2 * self._burst, self.engine.burst)
        return events

    def _handle_full_slots(self) -> list[Indexed]:
        """Mark full slots as rolled, or prefill them with half of their sequences if the engine cannot roll."""
        full = [s for s in self.scheduler.active() if not s.rolled and s.num_cached > self.engine.context]
        for sequence in full:
            sequence.rolled = self.engine.rolls
            if not sequence.rolled:
                sequence.start = len(sequence.tokens) - max(1, self.engine.context // 2)
        return self._prefill([(sequence, 0) for sequence in full if not sequence.rolled])

    def _begin(self, admission: Admission) -> tuple[RunningSequence, int]:
        """Assign and prepare the slot of a sequence; return the sequence and how many of its tokens are in the slot."""
        sequence = admission.sequence
        self.engine.assign(sequence.slot, sequence.request)
        if admission.shared and admission.source != sequence.slot:
            assert self.engine.copy is not None  # otherwise the scheduler shares nothing
            self.engine.copy(admission.source, sequence.slot, admission.shared)
        return sequence, admission.shared

    def _prefill(self, sequences: Sequence[tuple[RunningSequence, int]]) -> list[Indexed]:
        """Prefill the slots of sequences, each without its first tokens, which its slot holds already."""
        if not sequences:
            return []
        prompts = [PrefillInput(s.slot, s.cached_tokens[shared:], shared) for s, shared in sequences]
        return self._append([sequence for sequence, _ in sequences], self.engine.prefill(prompts))

    def _append(self, sequences: Sequence[RunningSequence], output: StepOutput) -> list[Indexed]:
        """Append the tokens of an output to their sequences, and return the events."""
        # The inner loop runs once per token and row, so attributes are looked up before it.
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
                self.scheduler.end(event.request_id)

    def _release(self, sequence: RunningSequence | None) -> None:
        if sequence is not None:
            self.engine.release(sequence.slot)
