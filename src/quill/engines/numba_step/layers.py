"""The parts of a block for one row, as the compiled step takes them: embedding, norm, positions, cache, attention.

On the way text → tokens → model → training → generation → people these are the lines of model/gpt.py and
model/modern.py in loops.

Reference: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; for the rest, the two model files.

Shapes: D width    E size of a head    S tokens.
"""

from __future__ import annotations

import numpy as np

from quill.engines.numba_step.linear import tile_product
from quill.engines.numba_step.sampling import compiled, exponential
from quill.engines.numba_step.simd import largest, total, total_of_squares
from quill.engines.numba_step.workspace import LANES, PANEL, ROWS_AT_ONCE


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
    work.history[slot * shape.capacity + place_of(shape, position)] = token
    key, factor, first = token, 1, 0
    rows = weights.ngram_rows[-1] if len(weights.ngram_rows) > 0 else 1  # shorter tables hold all keys there are
    for back in range(1, len(weights.ngram_rows) + 1):
        before = shape.vocab_size  # nothing yet, or nothing any more
        if position >= back and (position < shape.context or back < shape.window):
            before = work.history[slot * shape.capacity + place_of(shape, position - back)]
        factor = factor * (shape.vocab_size + 1) % rows
        key = (key + before * factor) % rows
        entry = first + key
        together = weights.ngrams[entry * shape.width : entry * shape.width + D]
        scale = weights.ngram_scales[entry]
        for i in range(D):
            sums[i] += np.float32(together[i]) * scale
        first += weights.ngram_rows[back - 1]
    normalize(shape, weights, 0, work.normed, at, work.stream, at)
    for i in range(D):
        start[i] = stream[i]
    aim(shape, weights, work, row)


@compiled
def place_of(shape, position):
    """Return where a token is kept: past the context, places go round in the last `window` of them."""
    if position < shape.context:
        return position
    return shape.context - shape.window + (position - shape.context) % shape.window


@compiled
def seen_from(shape, position):
    """Return the first place that a token looks at, and the one behind the last."""
    if position < shape.context:
        return 0, position + 1
    return shape.context - shape.window, shape.context


@compiled
def aim(shape, weights, work, row):
    """Note how far a row's position turns each pair of a head; beyond the tables in float64, as the model does."""
    pairs, position = shape.head_size // 2, work.positions[row]
    cosines, sines = work.cosines[row * pairs : (row + 1) * pairs], work.sines[row * pairs : (row + 1) * pairs]
    if position < shape.context:
        of = position * pairs
        known_cosines, known_sines = weights.cosines[of : of + pairs], weights.sines[of : of + pairs]
        for pair in range(pairs):
            cosines[pair], sines[pair] = known_cosines[pair], known_sines[pair]
    else:
        for pair in range(pairs):
            angle = position * weights.frequencies[pair]
            cosines[pair], sines[pair] = np.cos(angle), np.sin(angle)


@compiled
def remind(shape, weights, work, layer, row):
    """Add to a row again what it began with, as a modern model's blocks do."""
    at, reminder = row * shape.width, weights.reminders[layer]
    stream, start = work.stream[at : at + shape.width], work.start[at : at + shape.width]
    for i in range(shape.width):
        stream[i] += reminder * start[i]


@compiled
def turn(shape, work, values, at, row):
    """Give a query or a key unit size, and turn it to its row's position."""
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
def remember(shape, work, layer, row, head):
    """Make the queries that share a key ready, and put the key and its value into the cache."""
    E, H, K = shape.head_size, shape.n_head, shape.n_kv_head
    kept_at, group, at = place_of(shape, work.positions[row]), H // K, row * shape.projected
    key, value = at + (H + head) * E, at + (H + K + head) * E
    if shape.modern:
        turn(shape, work, work.projected, key, row)
        for query in range(head * group, (head + 1) * group):
            turn(shape, work, work.projected, at + query * E, row)
    queries = work.projected[at + head * group * E : at + (head + 1) * group * E]
    for i in range(len(queries)):
        queries[i] *= np.float32(shape.scale)
    place = (work.slots[row] * shape.n_layer + layer) * K + head
    to = place * shape.capacity * E + kept_at // PANEL * E * PANEL + kept_at % PANEL
    keys, new = work.keys[to : to + (E - 1) * PANEL + 1], work.projected[key : key + E]
    for i in range(E):
        keys[i * PANEL] = new[i]
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        count = min(PANEL, E - panel * PANEL)
        to = ((place * panels + panel) * shape.capacity + kept_at) * PANEL
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
    """heads = softmax(query · keys) · values, over each row's token and all before it that its text still holds.

    The `count` rows (at most 6) from `first` on are of one text, so that they share every key and value that is read;
    past the context a text has one row.
    """
    E, capacity = shape.head_size, shape.capacity
    start, end = seen_from(shape, work.positions[first + count - 1])
    begin = start // PANEL * PANEL
    place = (work.slots[first] * shape.n_layer + layer) * shape.n_kv_head + head // (shape.n_head // shape.n_kv_head)
    shares_at, tile = thread * ROWS_AT_ONCE * capacity, thread * ROWS_AT_ONCE * PANEL
    query = first * shape.projected + head * E
    for panel in range(begin // PANEL, (end + PANEL - 1) // PANEL):
        keys = (place * capacity + panel * PANEL) * E
        tile_product(count, work.sums, tile, work.keys, keys, work.projected, query, shape.projected, E)
        for row in range(count):
            to, of = shares_at + row * capacity + panel * PANEL, tile + row * PANEL
            copy(work.sums, of, work.attention, to, PANEL)
    for row in range(count):
        _, seen = seen_from(shape, work.positions[first + row])
        soften(work.attention, shares_at + row * capacity + begin, start - begin, seen - begin, end - begin)
    panels = (E + PANEL - 1) // PANEL
    for panel in range(panels):
        values = ((place * panels + panel) * capacity + begin) * PANEL
        shares = shares_at + begin
        tile_product(count, work.sums, tile, work.values, values, work.attention, shares, capacity, end - begin)
        for row in range(count):
            to, of = (first + row) * shape.width + head * E + panel * PANEL, tile + row * PANEL
            copy(work.sums, of, work.heads, to, min(PANEL, E - panel * PANEL))


@compiled
def soften(scores, at, start, seen, longest):
    """Turn the scores from `start` up to `seen` into shares of 1, and all others up to `longest` into 0."""
    last = (seen + LANES - 1) // LANES * LANES
    scores[at : at + start] = -np.inf
    scores[at + seen : at + max(last, longest)] = -np.inf
    highest = largest(scores, at, last)
    shares = scores[at : at + last]
    for i in range(last):
        shares[i] = exponential(shares[i] - highest)
    scores[at : at + start] = 0.0
    scores[at + seen : at + max(last, longest)] = 0.0
    whole = total(scores, at, last)
    share = np.float32(1.0) / whole
    for i in range(last):
        shares[i] *= share
