"""The parts of a block for one row, as the compiled step takes them: embedding, norm, positions, cache, attention.

On the way text → tokens → model → training → generation → people these are the lines of model/gpt.py and
model/modern.py in loops.

Reference: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; for the rest, the two model files.

Shapes: D width    E size of a head    S tokens.
"""

from __future__ import annotations

import numpy as np

from quill.generation.compiled.sampling import compiled, exponential
from quill.generation.compiled.state import ROWS_AT_ONCE
from quill.generation.compiled.vectors import PANEL, largest, product_1, total, total_of_squares


@compiled
def normalize(shape, weights, norm, inputs, outputs, at):
    """Return a row at unit size: LayerNorm with its weights, or RMSNorm without any."""
    D, width = shape.n_embd, shape.width
    mean = np.float32(0.0)
    if not shape.modern:
        mean = total(inputs, at, width) / np.float32(D)
    before, after = inputs[at : at + D], outputs[at : at + D]
    for i in range(D):
        after[i] = before[i] - mean
    variance = total_of_squares(outputs, at, width) / np.float32(D)
    factor = np.float32(1.0) / np.sqrt(variance + np.float32(shape.epsilon))
    if shape.modern:
        for i in range(D):
            after[i] *= factor
    else:
        of = norm * 2 * width
        weight, bias = weights.norms[of : of + D], weights.norms[of + width : of + width + D]
        for i in range(D):
            after[i] = after[i] * factor * weight[i] + bias[i]


@compiled
def embed(shape, weights, work, row):
    """Begin a row of the residual stream with what its token, its position and its n-grams mean."""
    token, slot, position = work.tokens[row], work.slots[row], work.positions[row]
    at, D = row * shape.width, shape.n_embd
    means = weights.token_embedding[token * shape.width : token * shape.width + D]
    stream, start, sums = work.stream[at : at + D], work.start[at : at + D], work.normed[at : at + D]
    if not shape.modern:
        place = weights.position_embedding[position * shape.width : position * shape.width + D]
        for i in range(D):
            stream[i] = means[i] + place[i]
        return
    for i in range(D):
        sums[i] = means[i]
    key, factor, first = token, 1, 0
    for back in range(1, len(weights.ngram_rows) + 1):
        before = shape.vocab_size  # nothing yet
        if position >= back:
            before = work.history[slot * shape.capacity + position - back]
        factor *= shape.vocab_size + 1
        key += before * factor
        entry = first + key % weights.ngram_rows[back - 1]
        together = weights.ngrams[entry * shape.width : entry * shape.width + D]
        scale = weights.ngram_scales[entry]
        for i in range(D):
            sums[i] += np.float32(together[i]) * scale
        first += weights.ngram_rows[back - 1]
    normalize(shape, weights, 0, work.normed, work.stream, at)
    for i in range(D):
        start[i] = stream[i]


@compiled
def turn(shape, weights, values, at, position):
    """Give a query or a key unit size, and turn it to its position."""
    E = shape.head_size
    square = np.float32(0.0)
    for i in range(E):
        square += values[at + i] * values[at + i]
    factor = np.float32(1.0) / np.sqrt(square / np.float32(E) + np.float32(shape.epsilon))
    angles = position * (E // 2)
    for pair in range(E // 2):
        first, second = values[at + 2 * pair] * factor, values[at + 2 * pair + 1] * factor
        cosine, sine = weights.cosines[angles + pair], weights.sines[angles + pair]
        values[at + 2 * pair] = first * cosine - second * sine
        values[at + 2 * pair + 1] = second * cosine + first * sine


@compiled
def remember(shape, weights, work, layer, row, head):
    """Make the queries that share a key ready, and put the key and its value into the cache."""
    E, H, K = shape.head_size, shape.n_head, shape.n_kv_head
    position, group, at = work.positions[row], H // K, row * shape.projected
    key, value = at + (H + head) * E, at + (H + K + head) * E
    if shape.modern:
        turn(shape, weights, work.projected, key, position)
        for query in range(head * group, (head + 1) * group):
            turn(shape, weights, work.projected, at + query * E, position)
    queries = work.projected[at + head * group * E : at + (head + 1) * group * E]
    for i in range(len(queries)):
        queries[i] *= np.float32(shape.scale)
    place = (work.slots[row] * shape.n_layer + layer) * K + head
    to = place * shape.capacity * E + position // PANEL * E * PANEL + position % PANEL
    keys, new = work.keys[to : to + (E - 1) * PANEL + 1], work.projected[key : key + E]
    for i in range(E):
        keys[i * PANEL] = new[i]
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        count = min(PANEL, E - panel * PANEL)
        to = ((place * panels + panel) * shape.capacity + position) * PANEL
        values, new = (
            work.values[to : to + count],
            work.projected[value + panel * PANEL : value + panel * PANEL + count],
        )
        for i in range(count):
            values[i] = new[i]


@compiled
def attend(shape, work, thread, layer, row, head):
    """heads = softmax(query · keys) · values, over this token and all before it."""
    E, seen = shape.head_size, work.positions[row] + 1
    place = (work.slots[row] * shape.n_layer + layer) * shape.n_kv_head + head // (shape.n_head // shape.n_kv_head)
    weights, tile = thread * shape.capacity, thread * ROWS_AT_ONCE * PANEL
    query = row * shape.projected + head * E
    for panel in range((seen + PANEL - 1) // PANEL):
        keys = (place * shape.capacity + panel * PANEL) * E
        product_1(work.attention, weights + panel * PANEL, work.keys, keys, work.projected, query, 0, E)
    last = (seen + 15) // 16 * 16
    for i in range(seen, last):
        work.attention[weights + i] = -np.inf
    highest = largest(work.attention, weights, last)
    shares = work.attention[weights : weights + last]
    for i in range(last):
        shares[i] = exponential(shares[i] - highest)
    for i in range(seen, last):
        work.attention[weights + i] = np.float32(0.0)
    share = np.float32(1.0) / total(work.attention, weights, last)
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        values = (place * panels + panel) * shape.capacity * PANEL
        product_1(work.sums, tile, work.values, values, work.attention, weights, 0, seen)
        to = row * shape.width + head * E + panel * PANEL
        heads, sums = work.heads[to : to + min(PANEL, E - panel * PANEL)], work.sums[tile : tile + PANEL]
        for i in range(len(heads)):
            heads[i] = sums[i] * share
