"""The interface that every engine implements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from quill.engines.request import Request
from quill.model.config import ModelConfig


@dataclass(frozen=True)
class StepOutput:
    """What an engine wrote in some steps."""

    tokens_TB: np.ndarray
    logits_TBV: np.ndarray
    """the model's own scores that each token was chosen from, float32"""


class PrefillInput(NamedTuple):
    """What is to be read into a slot."""

    slot: int
    tokens: Sequence[int]
    start: int
    """how many tokens of the same text the slot holds before them"""


class Engine(Protocol):
    """Sequences in numbered slots. The caller keeps count of what each slot holds.

    A slot never holds more than `context` tokens. A full slot continues by itself if the engine `rolls`; otherwise the
    caller reads a shorter text into it first.
    """

    config: ModelConfig
    slots: int
    context: int
    """how many tokens a slot holds"""
    rolls: bool
    """whether a full slot forgets its oldest tokens one by one, so that a text of any length can be decoded"""
    burst: int
    """how many steps are worth being asked for at once"""

    def assign(self, slot: int, request: Request) -> None:
        """Give a slot to a request: how its tokens are chosen, from its first random number on."""
        ...

    @property
    def copy(self) -> Callable[[int, int, int], None] | None:
        """`copy(source, target, length)` copies what the first tokens of one slot gave into another.

        None where that would not be bit for bit what reading them again gives.
        """
        ...

    def prefill(self, prompts: Sequence[PrefillInput]) -> StepOutput:
        """Read each of these into its slot, which forgets what came later there, and choose the next token of each."""
        ...

    def decode(self, slots: Sequence[int], steps: int) -> StepOutput:
        """Read the token chosen last in each of these slots and choose the next one, `steps` times."""
        ...

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return logits_TV of up to `context` tokens, each scored from those before it; every slot stays as it is."""
        ...

    def release(self, slot: int) -> None:
        """Release a slot whose text has ended; what it holds may still be copied until `assign`."""
        ...
