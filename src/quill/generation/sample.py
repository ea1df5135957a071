"""The sample that is written at each evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quill.data.dataset import Dataset


def opening(tokenizer) -> str:
    """Return what to write from where nothing is asked for: a new line, or else the first token there is."""
    return "\n" if not tokenizer.unknown_characters("\n") else tokenizer.decode([0])


def sampler(dataset: Dataset, length: int, seed: int) -> Callable[[Any], str] | None:
    """Return what writes a sample with a model, always from one start and seed: samples can be compared."""
    if not length:
        return None
    from quill.generation.language_model import LanguageModel

    start = opening(dataset.tokenizer)
    return lambda model: LanguageModel(model, dataset.tokenizer).generate(
        start, max_new_tokens=length, seed=seed, temperature=0.8
    )
