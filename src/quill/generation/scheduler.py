"""Which requests run: a queue, a fixed number of slots, and the tokens in each slot.

Plain Python without tensors. A slot holds the keys and values of one sequence, so the number of slots limits memory.
A released slot keeps its contents until another request needs it: a request that begins with the same tokens copies
them instead of computing them again.

The tokens of a request are a pure function of the request and the model. So a sequence can be stopped and computed
again from its prompt at any time, with the same tokens; `num_committed` is the number of those that readers already
have. `park` uses this to free a request's slot, and `restart` to undo a step that failed. (With the torch engine on a
GPU, the last bits of logits depend on the other sequences of the batch, so one of two tokens of nearly equal
probability may be chosen instead of the other.)

References: Yu et al. 2022, "Orca", section 3.1 (iteration-level scheduling); Kwon et al. 2023, "Efficient Memory
Management for Large Language Model Serving with PagedAttention", sections 4.4 (shared prefixes) and 4.5 (preemption by
recomputation).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from quill.engines.request import BusyError, Request
from quill.validation import require

MIN_SHARED = 8  # tokens: computing fewer is faster than waiting until they can be copied


@dataclass
class OpenRequest:
    """A request that has not ended, whether it waits, runs or is parked."""

    request_id: int
    request: Request
    num_committed: int = 0
    """number of its tokens that were reported; when they are computed again they are not reported again"""


@dataclass
class RunningSequence:
    """A request that has a slot: all its tokens, and which of them are in the slot."""

    open_request: OpenRequest
    slot: int
    tokens: list[int]
    start: int
    """index of the first token in the slot; earlier ones were dropped"""
    num_generated: int = 0
    rolled: bool = False
    """whether the slot drops its oldest token with each new one"""
    paused: bool = False
    """whether it keeps its slot but does not advance, because its reader is behind"""

    @property
    def request_id(self) -> int:
        return self.open_request.request_id

    @property
    def request(self) -> Request:
        return self.open_request.request

    @property
    def cached_tokens(self) -> list[int]:
        """The tokens from `start` on. Until it rolls, a slot holds all but the last, which was chosen but not read."""
        return self.tokens[self.start :]

    @property
    def num_cached(self) -> int:
        """The length of `cached_tokens`."""
        return len(self.tokens) - self.start

    @property
    def remaining(self) -> int:
        """Number of tokens still to be generated."""
        return self.request.max_new_tokens - self.num_generated


@dataclass(frozen=True)
class Admission:
    """A sequence that begins, and the slot from which its first tokens can be copied."""

    sequence: RunningSequence
    source: int
    """a slot that holds the same first tokens; may be the sequence's own"""
    shared: int
    """number of tokens to copy (0: none)"""


@dataclass
class Scheduler:
    """Decides which request uses which slot. `context` is the number of tokens in a slot."""

    slots: int
    context: int
    max_waiting: int | None = None
    """maximum number of waiting requests (None: no maximum); one more is a BusyError"""
    shares_prefixes: bool = True
    running: dict[int, RunningSequence] = field(default_factory=dict)
    waiting: OrderedDict[int, OpenRequest] = field(default_factory=OrderedDict)  # O(1) from both ends and the middle

    def __post_init__(self) -> None:
        require(self.slots >= 1, "slots", self.slots, "at least 1")
        self._open: dict[int, OpenRequest] = {}
        self._parked: set[int] = set()
        self._free: dict[int, list[int]] = {}  # the tokens that each free slot holds; the longest free comes first
        self.restart()

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._open)

    def require_room(self) -> None:
        """Raise BusyError if the queue is full."""
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            raise BusyError(f"{len(self.waiting)} requests are waiting already: try again later")

    def add(self, request_id: int, request: Request) -> None:
        """Put a request at the end of the queue."""
        self._open[request_id] = self.waiting[request_id] = OpenRequest(request_id, request)

    def admit(self) -> Admission | None:
        """Give a slot to the request that has waited longest, or return None if none waits or no slot is free.

        Also None if the request begins like a running sequence that was not prefilled yet: its tokens can be copied
        later.
        """
        if not self.waiting or not self._free:
            return None
        request_id = next(iter(self.waiting))
        open_request = self.waiting[request_id]
        tokens = list(open_request.request.prompt)
        start = max(0, len(tokens) - self.context)
        cached = tokens[start:]
        source, shared = self._longest_prefix(cached)
        if self.shares_prefixes:
            unread = [s.cached_tokens for s in self.running.values() if not s.num_generated]
            if max((_common(other, cached[:-1]) for other in unread), default=0) >= shared + MIN_SHARED:
                return None
        slot = source if shared and source in self._free else next(iter(self._free))
        sequence = self.running[request_id] = RunningSequence(open_request, slot, tokens, start)
        del self._free[slot], self.waiting[request_id]
        return Admission(sequence, source, shared)

    def end(self, request_id: int) -> RunningSequence | None:
        """End a waiting, parked or running request, and free its slot; return its sequence if it had a slot."""
        self._open.pop(request_id, None)
        self.waiting.pop(request_id, None)
        self._parked.discard(request_id)
        return self.release(request_id)

    def release(self, request_id: int) -> RunningSequence | None:
        """Free the slot of a request; return its sequence if it had a slot."""
        sequence = self.running.pop(request_id, None)
        if sequence is not None:
            self._free[sequence.slot] = self._contents(sequence)
        return sequence

    def park(self, request_id: int) -> RunningSequence | None:
        """Take a request out of the queue or its slot until `resume`; return its sequence if it had a slot."""
        self._parked.add(request_id)
        self.waiting.pop(request_id, None)
        return self.release(request_id)

    def resume(self, request_id: int) -> None:
        """Put a parked request at the end of the queue; do nothing for one that has ended meanwhile."""
        if request_id in self._parked:
            self.waiting[request_id] = self._open[request_id]
            self._parked.remove(request_id)

    def restart(self) -> None:
        """Put every request back into the queue, the oldest first, and treat all slots as empty."""
        self.running, self._parked = {}, set()
        self._free = {slot: [] for slot in range(self.slots)}
        self.waiting = OrderedDict(self._open)

    def steps(self, at_most: int) -> int:
        """Return how many steps all active sequences can take before one of them ends or its slot is full."""
        limits = [s.remaining if s.rolled else min(s.remaining, self.context - s.num_cached + 1) for s in self.active()]
        return max(0, min(at_most, *limits)) if limits else 0

    def active(self) -> list[RunningSequence]:
        """Return the sequences that the next step continues: those that run and are not paused."""
        return [s for s in self.running.values() if not s.paused]

    def preemptible(self) -> int | None:
        """Return a paused request whose slot a waiting request needs, or None."""
        if not self.waiting or self._free:
            return None
        return next((request_id for request_id, s in self.running.items() if s.paused), None)

    def _contents(self, sequence: RunningSequence) -> list[int]:
        """Return the tokens of a slot that other requests can copy: none if it rolled or was not prefilled."""
        return [] if sequence.rolled or not sequence.num_generated else sequence.tokens[sequence.start : -1]

    def _longest_prefix(self, tokens: list[int]) -> tuple[int, int]:
        """Return (slot, length) of the longest prefix of these tokens in any slot, without the last token.

        The last token is computed in any case, because its logits are needed.
        """
        if not self.shares_prefixes:
            return -1, 0
        slots = {**self._free, **{s.slot: self._contents(s) for s in self.running.values()}}
        lengths = {slot: _common(contents, tokens[:-1]) for slot, contents in slots.items()}
        slot = max(lengths, key=lambda slot: (lengths[slot], slot in self._free))
        return slot, lengths[slot]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:  # the usual case, at the speed of C
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])
