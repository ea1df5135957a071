"""Comparing texts of two engines, whose logits differ by rounding, up to the first choice that rounding can decide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reference_sampling import choose_tokens

from quill.engines.random_numbers import uniforms
from quill.engines.request import Request, Token

MARGIN = 1e-4
"""of a random number, and of a logit; the engines' logits agree to a tenth of it"""


def assert_same_text(request: Request, one: Sequence[Token], other: Sequence[Token]) -> None:
    """Assert that two texts of a request are equal up to a choice that rounding may decide.

    The request asks for the log-probabilities of the whole vocabulary and has no penalties.
    """
    assert len(one) == len(other) == request.max_new_tokens
    for index, (token, another) in enumerate(zip(one, other, strict=True)):
        if token.token_id != another.token_id:
            assert is_near_tie(request, index, token), (index, token.token_id, another.token_id)
            return


def is_near_tie(request: Request, index: int, token: Token) -> bool:
    """Say whether a change within the margin changes this choice."""
    logits_V = torch.empty(len(token.top_logprobs))
    for token_id, logprob in token.top_logprobs:
        logits_V[token_id] = logprob
    how, sorted_V = request.sampling, logits_V.sort(descending=True).values
    if how.temperature == 0:
        return bool(sorted_V[0] - sorted_V[1] < MARGIN)
    if how.top_k is not None and how.top_k < len(sorted_V) and sorted_V[how.top_k - 1] - sorted_V[how.top_k] < MARGIN:
        return True  # either token may be the last one kept
    uniform = float(uniforms(request.seed, [request.row], index, 1)[0, 0])
    around = (torch.tensor([uniform + change]) for change in (-MARGIN, MARGIN))
    return len({int(choose_tokens(logits_V[None], how, uniform_1)) for uniform_1 in around}) > 1
