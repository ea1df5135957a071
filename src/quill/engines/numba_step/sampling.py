"""From the logits of one row to its next token, compiled by Numba: engines/sampling.py in loops.

A test compares the two.

Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), arXiv:1904.09751.

Shapes: B slots, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from quill.engines.numba_step.simd import power_of_two

# Without Numba's reference counts: compiled functions neither create nor keep arrays. Without wrappers, which
# take a second to compile: only compiled functions call them, and `object_cache.py` loads the entry by its name.
njit: Any = numba.njit  # its annotations lack some options
OPTIONS: Any = {
    "nogil": True, "error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
}  # fmt: skip
compiled = njit(**OPTIONS)
arithmetic = njit(fastmath={"contract"}, **OPTIONS)  # a product and a sum may be rounded once, together


@arithmetic
def exponential(x):
    """Return e to the x, to float32 precision: a power of two times a polynomial (Cephes, expf)."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4) * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    return (y * rest * rest + rest + np.float32(1.0)) * power_of_two(whole)


@compiled
def apply_penalties(scores, slot, sampler):
    """Apply biases and penalties to the logits of a row."""
    repetition = sampler.repetition_B[slot]
    bias_V, seen_V, counts_V = sampler.bias_BV[slot], sampler.seen_BV[slot], sampler.counts_BV[slot]
    for i in range(len(scores)):
        score = scores[i] + bias_V[i]
        if seen_V[i] or counts_V[i]:
            score = score / repetition if score > 0 else score * repetition
        if counts_V[i]:
            score -= sampler.presence_B[slot] + sampler.frequency_B[slot] * np.float32(counts_V[i])
        scores[i] = score


@compiled
def nucleus(ordered, first, top_p):
    """Return the lowest logit of the nucleus; `ordered` ascends, and numbers before `first` were removed."""
    last = len(ordered) - 1
    whole = 0.0
    for i in range(first, last + 1):
        whole += exponential(ordered[i] - ordered[last])
    held, i = 0.0, last
    while i > first and held + exponential(ordered[i] - ordered[last]) < top_p * whole:
        held += exponential(ordered[i] - ordered[last])
        i -= 1
    return ordered[i]


@compiled
def sort(values):
    """Sort numbers in place in ascending order (heapsort: Williams 1964, "Algorithm 232")."""
    end = len(values)
    start = end // 2
    while end > 1:
        if start > 0:  # build the heap
            start -= 1
        else:  # move its largest number behind it
            end -= 1
            values[0], values[end] = values[end], values[0]
        parent, child = start, 2 * start + 1
        while child < end:
            if child + 1 < end and values[child] < values[child + 1]:
                child += 1
            if values[parent] >= values[child]:
                break
            values[parent], values[child] = values[child], values[parent]
            parent, child = child, 2 * child + 1


@compiled
def choose(logits, slot, uniform, sampler, scores, ordered):
    """Return the next token of a row; `scores` and `ordered` are buffers of the same length as `logits`."""
    V = len(logits)
    for i in range(V):
        scores[i] = logits[i]
    if not sampler.plain_B[slot]:
        apply_penalties(scores, slot, sampler)
    best = 0
    for i in range(V):
        if scores[i] > scores[best]:
            best = i
    temperature = sampler.temperature_B[slot]
    if temperature == 0:
        return best
    highest = scores[best]
    for i in range(V):
        scores[i] = (scores[i] - highest) / temperature
    lowest = sampler.min_p_B[slot]
    first = V - min(V, sampler.top_k_B[slot])
    if first > 0 or sampler.top_p_B[slot] < 1:
        for i in range(V):
            ordered[i] = scores[i]
        sort(ordered)
        while first > 0 and ordered[first - 1] == ordered[first]:
            first -= 1  # ties with the last one kept are kept
        lowest = max(lowest, ordered[first])
        if sampler.top_p_B[slot] < 1:
            lowest = max(lowest, nucleus(ordered, first, sampler.top_p_B[slot]))
    whole = 0.0
    for i in range(V):
        scores[i] = exponential(scores[i]) if scores[i] >= lowest else np.float32(0.0)
        whole += scores[i]
    reached, token = 0.0, best
    for i in range(V):
        reached += scores[i]
        if scores[i] > 0:
            token = i
            if reached > uniform * whole:
                break
    return token
