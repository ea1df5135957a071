"""Who writes when: requests wait in a queue, take a place when one is free, and leave it when they end.

On the way text → tokens → model → training → generation → people this is the policy of generation, plain Python without
a tensor. A place (slot) holds the keys and values of one text, so their number bounds memory. A place that was left
keeps its text until another needs the room: a request that begins with the same tokens need not read them again.

Reference: Yu et al. 2022, "Orca", section 3.1 (iteration-level scheduling); Kwon et al. 2023, "PagedAttention",
section 4.4 (shared prefixes).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from quill.engines.request import BusyError, Request
from quill.validation import require

WORTH = 8  # tokens: to read fewer again is quicker than to wait for them


@dataclass
class RunningSequence:
    """A request that has a place: all its tokens, and from which of them on the place holds them."""

    request_id: int
    request: Request
    slot: int
    tokens: list[int]
    start: int
    """the first token that the place holds: later ones slide in, earlier ones are forgotten"""
    num_generated: int = 0
    rolled: bool = False
    """whether the place has begun to forget its oldest tokens by itself"""

    @property
    def cached_tokens(self) -> Sequence[int]:
        """The tokens from `start` on. Until it rolls, a place holds all but the last, which was chosen but not read."""
        return self.tokens[self.start :]

    @property
    def remaining(self) -> int:
        """How many tokens are still to be written."""
        return self.request.max_new_tokens - self.num_generated


@dataclass(frozen=True)
class Admission:
    """A text that begins, and where it may copy its first tokens from."""

    text: RunningSequence
    source: int
    """a place that holds the same beginning; may be the text's own"""
    shared: int
    """how many tokens of it (0: none)"""


@dataclass
class Scheduler:
    """Places, and who has them. `context` is how many tokens a place holds."""

    slots: int
    context: int
    max_waiting: int | None = None
    """how many requests may wait (None: any number); one more is a BusyError"""
    shares_prefixes: bool = True
    running: dict[int, RunningSequence] = field(default_factory=dict)
    waiting: deque[tuple[int, Request]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        require(self.slots >= 1, "slots", self.slots, "at least 1")
        self._remembered: dict[int, list[int]] = {slot: [] for slot in range(self.slots)}  # the longest left come first
        self._next = 0

    def add(self, request: Request) -> int:
        """Let a request wait, and return its number."""
        if self.max_waiting is not None and len(self.waiting) >= self.max_waiting:
            raise BusyError(f"{len(self.waiting)} requests are waiting already: try again later")
        number, self._next = self._next, self._next + 1
        self.waiting.append((number, request))
        return number

    def admit(self) -> Admission | None:
        """Give the request that has waited longest a place, if there is one; None otherwise.

        None also where it begins like a text that has a place but was not read yet: read that one first.
        """
        if not self.waiting or not self._remembered:
            return None
        number, request = self.waiting[0]
        tokens = list(request.prompt)
        start = max(0, len(tokens) - self.context)
        held = tokens[start:]
        source, shared = self._longest_prefix(held)
        unread = [_common(text.cached_tokens, held[:-1]) for text in self.running.values() if not text.num_generated]
        if self.shares_prefixes and max(unread, default=0) >= shared + WORTH:
            return None
        self.waiting.popleft()
        free = source if shared and source in self._remembered else next(iter(self._remembered))
        del self._remembered[free]
        text = self.running[number] = RunningSequence(number, request, free, tokens, start)
        return Admission(text, source, shared)

    def leave(self, number: int) -> tuple[bool, RunningSequence | None]:
        """End a request and free its place, which keeps what it holds.

        Return whether it was there, and its text if it had begun.
        """
        waited = len(self.waiting)
        self.waiting = deque(pair for pair in self.waiting if pair[0] != number)
        text = self.running.pop(number, None)
        if text is not None:
            self._remembered[text.slot] = self._beginning(text)
        return text is not None or len(self.waiting) < waited, text

    def steps(self, at_most: int) -> int:
        """Return how many tokens all running texts can write before one of them ends or is full."""
        rooms = [
            t.remaining if t.rolled else min(t.remaining, self.context - len(t.cached_tokens) + 1)
            for t in self.running.values()
        ]
        return max(0, min(at_most, *rooms)) if rooms else 0

    def _beginning(self, text: RunningSequence) -> list[int]:
        """Return the tokens whose keys and values a text's place still holds, from the first one on."""
        if text.rolled or not text.num_generated:
            return []
        return list(text.cached_tokens[:-1])

    def _longest_prefix(self, tokens: list[int]) -> tuple[int, int]:
        """Return (slot, length) of the longest beginning of these tokens that some place holds, without the last one.

        The last one must be read in any case, because its scores are wanted.
        """
        if not self.shares_prefixes:
            return -1, 0
        places = {**self._remembered, **{t.slot: self._beginning(t) for t in self.running.values()}}
        lengths = {slot: _common(held, tokens[:-1]) for slot, held in places.items()}
        slot = max(lengths, key=lambda slot: (lengths[slot], slot in self._remembered))
        return slot, lengths[slot]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts have in common from their beginning on."""
    length = 0
    for a, b in zip(one, other):  # noqa: B905 (the shorter one decides)
        if a != b:
            break
        length += 1
    return length
