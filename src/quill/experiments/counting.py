"""Losses of models that only count, as marks to compare trained models with."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def counted_losses(tokens: np.ndarray, windows_NT: Tensor) -> tuple[float, float]:
    """Return the loss on the windows of counting single tokens, and of counting pairs, in nats per token.

    One is added to every count (Laplace), so that what never occurred has a probability.
    """
    ids, V = np.asarray(tokens, np.int64), int(max(int(tokens.max()), int(windows_NT.max()))) + 1
    single_V = np.bincount(ids, minlength=V) + 1.0
    pairs_VV = np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V) + 1.0
    before, after = windows_NT[:, :-1].numpy(), windows_NT[:, 1:].numpy()
    single = -np.log(single_V / single_V.sum())[after].mean()
    pairs = -np.log(pairs_VV / pairs_VV.sum(1, keepdims=True))[before, after].mean()
    return float(single), float(pairs)
