"""The sample that a training run generates at each evaluation, and the default prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.model.build import Model
    from quill.tokenizers.base import Tokenizer


def default_prompt(tokenizer: Tokenizer) -> str:
    """Return the default prompt: a line break, or the first token if the vocabulary has no line break."""
    return "\n" if not tokenizer.unknown_characters("\n") else tokenizer.decode([0])


def sample_function(dataset: AnyDataset, length: int, seed: int) -> Callable[[Model], Iterator[str]] | None:
    """Return a function that generates `length` tokens with a model, in pieces; None for a length of 0.

    Prompt, seed and temperature are the same at each call, so that samples of one run can be compared.
    """
    if not length:
        return None
    from quill.generation.language_model import LanguageModel

    prompt = default_prompt(dataset.tokenizer)

    def sample(model: Model) -> Iterator[str]:  # in pieces, so that a signal need not wait for a long sample
        return LanguageModel(model, dataset.tokenizer).stream(prompt, max_new_tokens=length, seed=seed, temperature=0.8)

    return sample
