"""The operations of a layer on one row: embedding, norm, rotary positions, cache, attention, as in the model files.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; for the rest, model/gpt.py and model/modern.py.

Shapes: D width    E head size    S cached tokens. Names that end in `_at` are offsets into flat arrays.
"""

from __future__ import annotations

import numpy as np

from quill.engines.numba_step.linear import tile_product
from quill.engines.numba_step.sampling import compiled, exponential
from quill.engines.numba_step.simd import maximum, total, total_of_squares
from quill.engines.numba_step.workspace import LANES, PANEL, ROWS_AT_ONCE


@compiled
def normalize_row(shape, weights, norm, inputs, input_at, outputs, output_at):
    """Write a normalised row: LayerNorm number `norm` with its weights, or RMSNorm without weights."""
    D, width = shape.n_embd, shape.width
    mean = np.float32(0.0)
    if not shape.modern:
        mean = total(inputs, input_at, width) / np.float32(D)
    before, after = inputs[input_at : input_at + D], outputs[output_at : output_at + D]
    for i in range(D):
        after[i] = before[i] - mean
    variance = total_of_squares(outputs, output_at, width) / np.float32(D)
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
    """Set a row of the residual stream to the embeddings of its token, its position and its n-grams."""
    token, slot, position = work.tokens[row], work.slots[row], work.positions[row]
    at, D = row * shape.width, shape.n_embd
    token_row = weights.token_embedding[token * shape.width : token * shape.width + D]
    stream, start, sums = work.stream[at : at + D], work.start[at : at + D], work.normed[at : at + D]
    if not shape.modern:
        position_row = weights.position_embedding[position * shape.width : position * shape.width + D]
        for i in range(D):
            stream[i] = token_row[i] + position_row[i]
        return
    for i in range(D):
        sums[i] = token_row[i]
    work.history[slot * shape.capacity + cache_index(shape, position)] = token
    key, factor, first = token, 1, 0
    rows = weights.ngram_rows[-1] if len(weights.ngram_rows) > 0 else 1  # tables with fewer rows have one for every key
    for back in range(1, len(weights.ngram_rows) + 1):
        before = shape.vocab_size  # where there is no token, or it was overwritten
        if position >= back and (position < shape.context or back < shape.window):
            before = work.history[slot * shape.capacity + cache_index(shape, position - back)]
        factor = factor * (shape.vocab_size + 1) % rows
        key = (key + before * factor) % rows
        entry = first + key
        ngram_row = weights.ngrams[entry * shape.width : entry * shape.width + D]
        scale = weights.ngram_scales[entry]
        for i in range(D):
            sums[i] += np.float32(ngram_row[i]) * scale
        first += weights.ngram_rows[back - 1]
    normalize_row(shape, weights, 0, work.normed, at, work.stream, at)
    for i in range(D):
        start[i] = stream[i]
    compute_rope_angles(shape, weights, work, row)


@compiled
def cache_index(shape, position):
    """Return the cache entry of a token: past the context, the last `window` entries are a ring."""
    if position < shape.context:
        return position
    return shape.context - shape.window + (position - shape.context) % shape.window


@compiled
def attended_range(shape, position):
    """Return the first cache entry that a token attends to, and the one after the last."""
    if position < shape.context:
        return 0, position + 1
    return shape.context - shape.window, shape.context


@compiled
def compute_rope_angles(shape, weights, work, row):
    """Write the cosines and sines of a row's position; beyond the tables in float64, like the model."""
    pairs, position = shape.head_size // 2, work.positions[row]
    cosines, sines = work.cosines[row * pairs : (row + 1) * pairs], work.sines[row * pairs : (row + 1) * pairs]
    if position < shape.context:
        at = position * pairs
        known_cosines, known_sines = weights.cosines[at : at + pairs], weights.sines[at : at + pairs]
        for pair in range(pairs):
            cosines[pair], sines[pair] = known_cosines[pair], known_sines[pair]
    else:
        for pair in range(pairs):
            angle = position * weights.frequencies[pair]
            cosines[pair], sines[pair] = np.cos(angle), np.sin(angle)


@compiled
def add_embedding_skip(shape, weights, work, layer, row):
    """Add the scaled embedding of a row to its residual stream, as a modern model's layers do."""
    at, scale = row * shape.width, weights.embedding_skip[layer]
    stream, start = work.stream[at : at + shape.width], work.start[at : at + shape.width]
    for i in range(shape.width):
        stream[i] += scale * start[i]


@compiled
def apply_rope(shape, work, values, at, row):
    """Normalise a query or a key, and rotate it by the angles of its row."""
    E = shape.head_size
    square = np.float32(0.0)
    for i in range(E):
        square += values[at + i] * values[at + i]
    factor = np.float32(1.0) / np.sqrt(square / np.float32(E) + np.float32(shape.epsilon))
    angles = row * (E // 2)
    for pair in range(E // 2):
        first, second = values[at + 2 * pair] * factor, values[at + 2 * pair + 1] * factor
        cosine, sine = work.cosines[angles + pair], work.sines[angles + pair]
        values[at + 2 * pair] = first * cosine - second * sine
        values[at + 2 * pair + 1] = second * cosine + first * sine


@compiled
def write_kv(shape, work, layer, row, head):
    """Normalise, rotate and scale the queries of a key head, and write its key and value to the cache."""
    E, H, K = shape.head_size, shape.n_head, shape.n_kv_head
    index, group, at = cache_index(shape, work.positions[row]), H // K, row * shape.projected
    key_at, value_at = at + (H + head) * E, at + (H + K + head) * E
    if shape.modern:
        apply_rope(shape, work, work.projected, key_at, row)
        for query in range(head * group, (head + 1) * group):
            apply_rope(shape, work, work.projected, at + query * E, row)
    queries = work.projected[at + head * group * E : at + (head + 1) * group * E]
    for i in range(len(queries)):
        queries[i] *= np.float32(shape.scale)
    block = (work.slots[row] * shape.n_layer + layer) * K + head  # of one sequence, layer and head
    to = block * shape.capacity * E + index // PANEL * E * PANEL + index % PANEL
    keys, new = work.keys[to : to + (E - 1) * PANEL + 1], work.projected[key_at : key_at + E]
    for i in range(E):
        keys[i * PANEL] = new[i]
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        count = min(PANEL, E - panel * PANEL)
        to = ((block * panels + panel) * shape.capacity + index) * PANEL
        values, new = (
            work.values[to : to + count],
            work.projected[value_at + panel * PANEL : value_at + panel * PANEL + count],
        )
        for i in range(count):
            values[i] = new[i]


@compiled
def copy(source, source_at, target, target_at, count):
    """Copy numbers from one array to another."""
    old, new = source[source_at : source_at + count], target[target_at : target_at + count]
    for i in range(count):
        new[i] = old[i]


@compiled
def attend_tile(shape, work, thread, layer, first, count, head):
    """Compute heads = softmax(query · keys) · values for up to 6 rows and one head, over the attended tokens.

    The `count` rows from `first` on are of one sequence, so they share every key and value that is read. Past the
    context a sequence has one row.
    """
    E, capacity = shape.head_size, shape.capacity
    start, end = attended_range(shape, work.positions[first + count - 1])
    begin = start // PANEL * PANEL
    block = (work.slots[first] * shape.n_layer + layer) * shape.n_kv_head + head // (shape.n_head // shape.n_kv_head)
    weights_at, tile = thread * ROWS_AT_ONCE * capacity, thread * ROWS_AT_ONCE * PANEL
    query = first * shape.projected + head * E
    for panel in range(begin // PANEL, (end + PANEL - 1) // PANEL):
        keys = (block * capacity + panel * PANEL) * E
        tile_product(count, work.sums, tile, work.keys, keys, work.projected, query, shape.projected, E)
        for row in range(count):
            to, at = weights_at + row * capacity + panel * PANEL, tile + row * PANEL
            copy(work.sums, at, work.attention, to, PANEL)
    for row in range(count):
        _, row_end = attended_range(shape, work.positions[first + row])
        softmax(work.attention, weights_at + row * capacity + begin, start - begin, row_end - begin, end - begin)
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        values = ((block * panels + panel) * capacity + begin) * PANEL
        weights = weights_at + begin
        tile_product(count, work.sums, tile, work.values, values, work.attention, weights, capacity, end - begin)
        for row in range(count):
            to, at = (first + row) * shape.width + head * E + panel * PANEL, tile + row * PANEL
            copy(work.sums, at, work.heads, to, min(PANEL, E - panel * PANEL))


@compiled
def softmax(scores, at, start, end, longest):
    """Replace the scores from `start` up to `end` by their softmax, and all others up to `longest` by 0."""
    last = (end + LANES - 1) // LANES * LANES
    scores[at : at + start] = -np.inf
    scores[at + end : at + max(last, longest)] = -np.inf
    highest = maximum(scores, at, last)
    weights = scores[at : at + last]
    for i in range(last):
        weights[i] = exponential(weights[i] - highest)
    scores[at : at + start] = 0.0
    scores[at + end : at + max(last, longest)] = 0.0
    whole = total(scores, at, last)
    share = np.float32(1.0) / whole
    for i in range(last):
        weights[i] *= share
