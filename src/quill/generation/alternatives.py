"""The probability of each token at one position of a generated text, before and after the sampling rules.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quill.engines.request import Request


class Alternatives(NamedTuple):
    """The probability of each token at one position."""

    before_V: np.ndarray
    """of the model itself: the softmax of its logits"""
    after_V: np.ndarray
    """of the choice: after penalties, temperature and filters; 1 for the likeliest token at temperature 0"""


def alternatives(logits_V: np.ndarray, request: Request, generated: Sequence[int]) -> Alternatives:
    """Return the probabilities of the token that follows the prompt of a request and the tokens `generated` so far.

    `logits_V` are the model's logits at that position.
    """
    import torch

    from quill.engines.sampling import BatchSampler, choice_probabilities

    logits_1V = torch.from_numpy(logits_V.astype(np.float32))[None]
    vocab_size = logits_1V.shape[-1]
    sampler = BatchSampler(1, vocab_size, torch.device("cpu"))
    sampler.assign(0, request.for_engine(vocab_size))
    for token in generated:
        sampler.count(torch.tensor([token]), torch.ones(1))
    after_V = choice_probabilities(logits_1V, sampler.rules)[0]
    return Alternatives(logits_1V[0].double().softmax(-1).numpy(), after_V.numpy())
