"""The random numbers of sampling: a pure function of seed, row and token index.

Every engine uses them, so that all engines choose the same tokens.

Reference: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".

Shapes: T tokens, B rows.
"""

from collections.abc import Sequence

import numpy as np

SEEDS = 2**64  # a seed is one of Philox's two 64-bit key words; the row is the other


def uniforms(seed: int, rows: Sequence[int], start: int, count: int) -> np.ndarray:
    """Return the uniforms in [0, 1) of tokens `start` … `start + count - 1`, as float64 of shape (T, B).

    The number for token t of row r is a pure function of (seed, r, t): the t-th double of Philox4x64-10 keyed by
    (seed, r). So a row's tokens do not depend on the other rows of the batch.
    """
    # Philox gives 4 doubles a counter step.
    uniforms_TB = np.empty((count, len(rows)))
    skipped_steps, skipped_doubles = divmod(start, 4)
    for column, row in enumerate(rows):
        stream = np.random.Philox(key=np.array([seed, row], dtype=np.uint64))
        doubles = np.random.Generator(stream.advance(skipped_steps)).random(skipped_doubles + count)
        uniforms_TB[:, column] = doubles[skipped_doubles:]
    return uniforms_TB
