"""Log-probabilities of tokens, from the model's own scores.

Shapes: V vocabulary.
"""

from __future__ import annotations

import numpy as np

from quill.engines.request import Token


def with_logprobs(token_id: int, logits_V: np.ndarray, top: int | None) -> Token:
    """Return a token with the log-probabilities that were asked for: log softmax of the model's own scores."""
    if top is None:
        return Token(token_id)
    logits_V = logits_V.astype(np.float64)
    logprobs_V = logits_V - logits_V.max()
    logprobs_V -= np.log(np.exp(logprobs_V).sum())
    likeliest = np.argsort(-logprobs_V, kind="stable")[:top].tolist()
    return Token(token_id, float(logprobs_V[token_id]), tuple((i, float(logprobs_V[i])) for i in likeliest))
