"""Generation of token ids without a tokenizer: one prompt, one or several rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from quill.engines.base import Engine
from quill.engines.request import Request, SamplingConfig, TokenEvent, whole_number
from quill.generation.batch_generator import BatchGenerator


def generate_tokens(
    engine: Engine,
    prompt: Sequence[int] | np.ndarray,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yield the next token of each of `num_samples` rows, `max_new_tokens` times, all continuing one prompt.

    Row r uses its own random stream of (seed, r), so it does not depend on the number of rows. Impossible values are a
    ConfigError.
    """
    num_samples = whole_number("num_samples", num_samples, least=1)
    token_ids = tuple(prompt.tolist() if isinstance(prompt, np.ndarray) else prompt)
    how = sampling or SamplingConfig()
    events = BatchGenerator(engine).follow(
        [Request(token_ids, max_new_tokens, how, seed, row) for row in range(num_samples)]
    )
    return _rows(events, num_samples)


def _rows(events: Iterator[tuple[int, TokenEvent]], num_samples: int) -> Iterator[list[int]]:
    """Yield the next token of every row, as soon as all rows have one."""
    ready: list[deque[int]] = [deque() for _ in range(num_samples)]
    for row, event in events:
        if event.token is not None:
            ready[row].append(event.token.token_id)
        while all(ready):
            yield [tokens.popleft() for tokens in ready]
