"""Writing tokens: requests go in at any time, and come out token by token, many of them computed together.

On the way text → tokens → model → training → generation → people this is the loop of generation. It knows tokens only;
text, stop strings and prompts belong to `language_model.py`. The policy is in `scheduler.py`, the arithmetic in an
engine.

Past the trained context the cost of a token stays bounded, however long the text grows. A modern model's positions are
angles, which may go on for ever: its window rolls, each token takes the place of the oldest and is read once, and the
model sees the last `rolling_window` tokens, three quarters of `block_size`. A classic model's positions are learned for
`block_size` places and stored inside the cached keys, so a full place cannot slide by one. The last `block_size // 2`
tokens are read again at once instead. Such a re-reading comes after every `block_size - block_size // 2` tokens, so the
model always sees at least that half.

Reference: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3.1.

Shapes: T steps, B texts, V vocabulary.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from quill.engines.base import Engine, PrefillInput, StepOutput
from quill.engines.request import Request, SamplingConfig, Token, TokenEvent
from quill.errors import CheckpointError
from quill.generation.scheduler import Admission, RunningSequence, Scheduler
from quill.validation import require


class BatchGenerator:
    """Texts that are written together by one engine. What a request gets does not depend on the others."""

    def __init__(self, engine: Engine, max_waiting: int | None = None) -> None:
        self.engine = engine
        shares = engine.copy is not None
        self.scheduler = Scheduler(engine.slots, engine.context, max_waiting, shares_prefixes=shares)
        self._burst = 1
        self._inboxes: dict[int, deque[TokenEvent]] = {}
        self._lock = threading.RLock()

    def follow(self, requests: Sequence[Request]) -> Iterator[tuple[int, TokenEvent]]:
        """Add requests and yield what happens to them, each as its place in the list and the event, until all ended.

        Whoever asks for the next event lets everybody write on, so that several may follow at once, from several
        threads too. Requests of one who stops asking are cancelled.
        """
        for request in requests:
            self._check(request)
        return self._follow(requests)

    def _follow(self, requests: Sequence[Request]) -> Iterator[tuple[int, TokenEvent]]:
        inbox: deque[TokenEvent] = deque()
        places: dict[int, int] = {}
        try:
            for place, request in enumerate(requests):
                with self._lock:
                    number = self.add(request)
                    places[number], self._inboxes[number] = place, inbox
            going = set(places)
            while going or inbox:
                with self._lock:
                    if not inbox:
                        self.step()
                while inbox:
                    event = inbox.popleft()
                    going -= {event.request_id} if event.finish_reason else set()
                    yield places[event.request_id], event
        finally:
            for number in places:
                self.cancel(number)
                self._inboxes.pop(number, None)

    def add(self, request: Request) -> int:
        """Let a request join as soon as there is a place, and return its number. A full queue is a BusyError."""
        self._check(request)
        with self._lock:
            return self.scheduler.add(request)

    def _check(self, request: Request) -> None:
        vocab_size = self.engine.config.vocab_size
        for token in (*request.prompt, *request.logit_bias):
            require(0 <= token < vocab_size, "token", token, f"from 0 to {vocab_size - 1}")

    def cancel(self, number: int) -> None:
        """End a request now, whether it writes or waits; one that has ended already stays as it is."""
        with self._lock:
            if self._leave(number):
                self._tell([TokenEvent(number, None, "cancelled")])

    @property
    def busy(self) -> bool:
        """Whether there is anything left to write."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def step(self) -> list[TokenEvent]:
        """Let those who wait begin, and all write on by one burst of tokens. The events are in the order of writing."""
        with self._lock:
            events = self._step()
            self._tell(events)
            return events

    def _step(self) -> list[TokenEvent]:
        events = []
        while beginning := list(iter(self.scheduler.admit, None)):
            self._burst = 1  # whoever begins is shown a first token at once
            events += [self._end(admission.text) for admission in beginning if admission.text.remaining == 0]
            events += self._read([self._begin(admission) for admission in beginning if admission.text.remaining])
        events += self._make_room()
        texts = list(self.scheduler.running.values())
        if steps := self.scheduler.steps(self._burst):
            events += self._take(texts, self.engine.decode([text.slot for text in texts], steps))
            self._burst = min(2 * self._burst, self.engine.burst)
        return events

    def _make_room(self) -> list[TokenEvent]:
        """Let full places roll, or read the last half of their texts again where they cannot."""
        running = self.scheduler.running.values()
        full = [text for text in running if not text.rolled and len(text.cached_tokens) > self.engine.context]
        for text in full:
            text.rolled = self.engine.rolls
            if not text.rolled:
                text.start = len(text.tokens) - max(1, self.engine.context // 2)
        return self._read([(text, 0) for text in full if not text.rolled])

    def _begin(self, admission: Admission) -> tuple[RunningSequence, int]:
        """Give a place to a text; return it and how many of its tokens the place holds by then."""
        text = admission.text
        self.engine.assign(text.slot, text.request)
        if admission.shared and admission.source != text.slot:
            assert self.engine.copy is not None  # or nothing would be shared
            self.engine.copy(admission.source, text.slot, admission.shared)
        return text, admission.shared

    def _read(self, texts: Sequence[tuple[RunningSequence, int]]) -> list[TokenEvent]:
        """Read texts behind what their places hold, all at once."""
        if not texts:
            return []
        prompts = [PrefillInput(text.slot, text.cached_tokens[known:], known) for text, known in texts]
        return self._take([text for text, _ in texts], self.engine.prefill(prompts))

    def _take(self, texts: Sequence[RunningSequence], written: StepOutput) -> list[TokenEvent]:
        events = []
        for tokens_B, logits_BV in zip(written.tokens_TB, written.logits_TBV, strict=True):
            for text, number, logits_V in zip(texts, tokens_B.tolist(), logits_BV, strict=True):
                if text.num_generated == 0 and not np.isfinite(logits_V).all():
                    raise CheckpointError(
                        "the model's scores are not finite numbers: its weights are damaged, use another checkpoint"
                    )
                text.tokens.append(number)
                text.num_generated += 1
                token = with_logprobs(number, logits_V, text.request.logprobs)
                events.append(TokenEvent(text.request_id, token) if text.remaining else self._end(text, token))
        return events

    def _end(self, text: RunningSequence, token: Token | None = None) -> TokenEvent:
        self._leave(text.request_id)
        return TokenEvent(text.request_id, token, "length")

    def _leave(self, number: int) -> bool:
        known, text = self.scheduler.leave(number)
        if text is not None:
            self.engine.release(text.slot)
        return known

    def _tell(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            if event.request_id in self._inboxes:
                self._inboxes[event.request_id].append(event)


def with_logprobs(number: int, logits_V: np.ndarray, top: int | None) -> Token:
    """Return a token with the log-probabilities that were asked for: log softmax of the model's own scores."""
    if top is None:
        return Token(number)
    logits_V = logits_V.astype(np.float64)
    logprobs_V = logits_V - logits_V.max()
    logprobs_V -= np.log(np.exp(logprobs_V).sum())
    likeliest = np.argsort(-logprobs_V, kind="stable")[:top].tolist()
    return Token(number, float(logprobs_V[number]), tuple((i, float(logprobs_V[i])) for i in likeliest))


def generate_tokens(
    engine: Engine,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yield the next token of each of `num_samples` rows, `max_new_tokens` times, all continuing one prompt.

    Row r draws from its own random stream of (seed, r), so it does not depend on how many rows are written. Impossible
    values are a ConfigError.
    """
    whole = isinstance(num_samples, int) and not isinstance(num_samples, bool)
    require(whole and num_samples >= 1, "num_samples", num_samples, "a whole number of at least 1")
    numbers = tuple(int(token) for token in prompt)
    how = sampling or SamplingConfig()
    events = BatchGenerator(engine).follow(
        [Request(numbers, max_new_tokens, how, seed, row) for row in range(num_samples)]
    )
    return _rows(events, num_samples)


def _rows(events: Iterator[tuple[int, TokenEvent]], num_samples: int) -> Iterator[list[int]]:
    """Yield tokens as soon as each row has its next one."""
    ready: list[deque[int]] = [deque() for _ in range(num_samples)]
    for row, event in events:
        if event.token is not None:
            ready[row].append(event.token.token_id)
        while all(ready):
            yield [tokens.popleft() for tokens in ready]
