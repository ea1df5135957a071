"""The parts of a block for one row, as the compiled step takes them: embedding, norm, positions, cache, attention.

On the way text → tokens → model → training → generation → people these are the lines of model/gpt.py and
model/modern.py in loops.

Reference: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; for the rest, the two model files.

Shapes: D width    E size of a head    S tokens.
"""

from __future__ import annotations

import numpy as np

from quill.generation.compiled.linear import tile_product
from quill.generation.compiled.sampling import compiled, exponential
from quill.generation.compiled.state import LANES, PANEL, ROWS_AT_ONCE
from quill.generation.compiled.vectors import largest, total, total_of_squares


@compiled
def normalize(shape, weights, norm, inputs, of, outputs, to):
    """Return a row at unit size: LayerNorm with its weights, or RMSNorm without any."""
    D, width = shape.n_embd, shape.width
    mean = np.float32(0.0)
    if not shape.modern:
        mean = total(inputs, of, width) / np.float32(D)
    before, after = inputs[of : of + D], outputs[to : to + D]
    for i in range(D):
        after[i] = before[i] - mean
    variance = total_of_squares(outputs, to, width) / np.float32(D)
    factor = np.float32(1.0) / np.sqrt(variance + np.float32(shape.epsilon))
    if shape.modern:
        for i in range(D):
            after[i] *= factor
    else:
        at = norm * 2 * width
        weight, bias = weights.norms[at : at + D], weights.norms[at + width : at + width + D]
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
    normalize(shape, weights, 0, work.normed, at, work.stream, at)
    for i in range(D):
        start[i] = stream[i]


@compiled
def remind(shape, weights, work, layer, row):
    """Add to a row again what it began with, as a modern model's blocks do."""
    at, reminder = row * shape.width, weights.reminders[layer]
    stream, start = work.stream[at : at + shape.width], work.start[at : at + shape.width]
    for i in range(shape.width):
        stream[i] += reminder * start[i]


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
def copy(source, of, target, to, count):
    """Copy numbers from one array to another."""
    old, new = source[of : of + count], target[to : to + count]
    for i in range(count):
        new[i] = old[i]


@compiled
def attend(shape, work, thread, layer, first, count, head):
    """heads = softmax(query · keys) · values, over each row's token and all before it.

    The `count` rows (at most 6) from `first` on are of one text, so that they share every key and value that is read.
    """
    E, capacity, seen = shape.head_size, shape.capacity, work.positions[first + count - 1] + 1
    place = (work.slots[first] * shape.n_layer + layer) * shape.n_kv_head + head // (shape.n_head // shape.n_kv_head)
    shares_at, tile = thread * ROWS_AT_ONCE * capacity, thread * ROWS_AT_ONCE * PANEL
    query = first * shape.projected + head * E
    for panel in range((seen + PANEL - 1) // PANEL):
        keys = (place * capacity + panel * PANEL) * E
        tile_product(count, work.sums, tile, work.keys, keys, work.projected, query, shape.projected, E)
        for row in range(count):
            to, of = shares_at + row * capacity + panel * PANEL, tile + row * PANEL
            copy(work.sums, of, work.attention, to, PANEL)
    for row in range(count):
        soften(work.attention, shares_at + row * capacity, work.positions[first + row] + 1, seen)
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        values = (place * panels + panel) * capacity * PANEL
        tile_product(count, work.sums, tile, work.values, values, work.attention, shares_at, capacity, seen)
        for row in range(count):
            to, of = (first + row) * shape.width + head * E + panel * PANEL, tile + row * PANEL
            copy(work.sums, of, work.heads, to, min(PANEL, E - panel * PANEL))


@compiled
def soften(scores, at, seen, longest):
    """Turn `seen` scores into shares of 1, and those after them, up to `longest`, into 0."""
    last = (seen + LANES - 1) // LANES * LANES
    scores[at + seen : at + max(last, longest)] = -np.inf
    highest = largest(scores, at, last)
    shares = scores[at : at + last]
    for i in range(last):
        shares[i] = exponential(shares[i] - highest)
    scores[at + seen : at + max(last, longest)] = 0.0
    whole = total(scores, at, last)
    for i in range(last):
        shares[i] /= whole
