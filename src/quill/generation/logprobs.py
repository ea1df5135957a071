"""Log-probabilities of tokens, from the model's own logits.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from quill.engines.request import Token


def with_logprobs(token_id: int, logits_V: np.ndarray, top: int | None) -> Token:
    """Return a token with the requested log-probabilities: the log-softmax of the model's own logits."""
    if top is None:
        return _plain_token(token_id)
    logits_V = logits_V.astype(np.float64)
    logprobs_V = logits_V - logits_V.max()
    logprobs_V -= np.log(np.exp(logprobs_V).sum())
    likeliest = np.argsort(-logprobs_V, kind="stable")[:top].tolist()
    return Token(token_id, float(logprobs_V[token_id]), tuple((i, float(logprobs_V[i])) for i in likeliest))


_plain_token = functools.cache(Token)  # one for each token of a vocabulary


def prompt_tokens(
    token_ids: Sequence[int], context: int, top: int | None, logits: Callable[[Sequence[int]], np.ndarray]
) -> list[Token]:
    """Return the tokens of a prompt with the requested log-probabilities; `logits` computes logits_TV.

    Only the last `context` tokens are scored; their first one, and any token before them, has no log-probability.
    """
    if top is None:
        return [Token(token_id) for token_id in token_ids]
    read = token_ids[-context:]
    scored = [
        with_logprobs(token_id, logits_V, top) for token_id, logits_V in zip(read[1:], logits(read), strict=False)
    ]
    return [*(Token(token_id) for token_id in token_ids[: len(token_ids) - len(scored)]), *scored]
