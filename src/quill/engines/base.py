"""The interface that every engine implements."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from quill.engines.request import Request
from quill.model.config import ModelConfig


@dataclass(frozen=True)
class StepOutput:
    """The tokens and logits of one or more steps."""

    tokens_TB: np.ndarray
    logits_TBV: np.ndarray
    """the model's own logits that each token was chosen from, float32"""


class PrefillInput(NamedTuple):
    """Tokens to prefill into a slot."""

    slot: int
    tokens: Sequence[int]
    start: int
    """number of tokens of the same sequence that the slot already holds"""


class Engine(Protocol):
    """Computes sequences in numbered slots. The caller keeps track of what each slot holds.

    A slot holds at most `context` tokens. If the engine `rolls`, decoding continues in a full slot; otherwise the
    caller prefills it with a shorter sequence first.
    """

    config: ModelConfig
    slots: int
    context: int
    """how many tokens a slot holds"""
    rolls: bool
    """whether a full slot drops its oldest tokens one by one, so that a sequence of any length can be decoded"""
    prefers_idle_cores: bool
    """whether work beside a step, on the CPU, costs more time than the same work before it"""
    burst: int
    """number of steps for which one call of `decode` is efficient"""

    def assign(self, slot: int, request: Request) -> None:
        """Assign a slot to a request: its sampling settings, and its random numbers from the first one on."""
        ...

    @property
    def copy(self) -> Callable[[int, int, int], None] | None:
        """`copy(source, target, length)` copies the keys and values of the first tokens of one slot into another.

        None if they would not be bit-identical to those of a prefill.
        """
        ...

    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        """Compute each of these in its slot, dropping any later tokens there, and choose the next token of each."""
        ...

    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        """Compute the token chosen last in each of these slots and choose the next one, `steps` times."""
        ...

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV of a sequence of up to `context` tokens; the slots do not change."""
        ...

    def release(self, slot: int) -> None:
        """Release a slot whose sequence has ended; its contents may still be copied until `assign`."""
        ...


def print_status(message: str) -> None:
    """Print a status message of an engine to standard error: the default `on_status`."""
    print(f"quill: {message}", file=sys.stderr, flush=True)
