"""One step of a GPT for a CPU, compiled by Numba: some rows, each a token of some text, to the scores of their successors.

On the way text → tokens → model → training → generation → people this is the inside of the quickest CPU engine. It is
model/gpt.py and model/modern.py once more, in loops instead of tensors, and a test proves them equal. A prompt is read
as many rows of one text, a batch as one row of many texts: both are this same step, and what a row gives does not
depend on the rows beside it, because each number is added up in an order of its own.

All threads run every function here together. Each does its share of the work between two calls of `wait`.

Reference: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2. How it is made fast: docs/speed.md.

Names end in shapes as in the models: R rows    D width    E size of a head    S tokens    V vocabulary    L layers.
Arrays are flat; widths are rounded up to whole panels, and what is beyond the end is always 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload

from quill.generation.numba_sampling import choose, compiled, exponential
from quill.generation.numba_vectors import (
    PANEL,
    count_up,
    largest,
    product_1,
    product_2,
    product_4,
    product_6,
    read_counter,
    total,
    total_of_squares,
    yield_core,
)

ROWS_AT_ONCE = 6  # rows that share each weight they load: 24 sums and 4 weights fit the 32 registers of AVX-512
STORE, ADD, GELU, RELU, RELU_SQUARED = range(5)  # what becomes of a product


class Matrix(NamedTuple):
    """One linear map of every layer, cut into panels of 64 outputs: values[layer][panel][input][output]."""

    values: np.ndarray  # float32; or int8 in groups of four inputs: values[layer][panel][group][output][4]
    scales: np.ndarray  # float32, one an output: what one step of int8 is worth
    sums: np.ndarray  # int32, one an output: 128 times the sum of its codes, because codes of inputs begin at -128
    bias: np.ndarray  # float32, one an output
    depth: int  # inputs
    panels: int


class Shape(NamedTuple):
    """The sizes of a model."""

    modern: bool
    n_layer: int
    n_head: int
    n_kv_head: int
    head_size: int
    n_embd: int
    vocab_size: int
    activation: int
    epsilon: float
    scale: float  # of the products of queries and keys
    softcap: float
    width: int  # of a row of the residual stream, in whole panels
    projected: int  # of a row of queries, keys and values
    hidden: int
    scores: int  # of a row of logits
    capacity: int  # tokens of a text, in whole panels


class Weights(NamedTuple):
    """All that was learnt."""

    token_embedding: np.ndarray  # V width
    position_embedding: np.ndarray  # S width; none in a modern model
    norms: np.ndarray  # 2 L + 1, weight and bias, width; none in a modern model
    query_key_value: Matrix
    attention_output: Matrix
    feed_forward_hidden: Matrix
    feed_forward_output: Matrix
    head: Matrix
    ngrams: np.ndarray  # all rows of all tables
    ngram_rows: np.ndarray  # how many each table has
    reminders: np.ndarray  # L
    cosines: np.ndarray  # S E/2
    sines: np.ndarray


class Work(NamedTuple):
    """What a step writes: the state of all texts, and room for what comes between."""

    keys: np.ndarray  # slot L K panel-of-S E 64
    values: np.ndarray  # slot L K panel-of-E S 64
    history: np.ndarray  # slot S: the tokens that are held
    tokens: np.ndarray  # R
    slots: np.ndarray  # R
    positions: np.ndarray  # R
    stream: np.ndarray  # R width: the residual stream
    start: np.ndarray  # R width: what it began with
    normed: np.ndarray  # R width
    projected: np.ndarray  # R queries, keys, values
    heads: np.ndarray  # R width
    hidden: np.ndarray  # R hidden
    logits: np.ndarray  # R scores
    scratch: np.ndarray  # thread scores
    codes: np.ndarray  # R, uint8: inputs of an int8 product
    code_scales: np.ndarray  # R
    sums: np.ndarray  # thread: a tile of float32 sums
    whole_sums: np.ndarray  # thread: a tile of int32 sums
    attention: np.ndarray  # thread: the weights of one head
    counters: np.ndarray  # thread: how often each has waited; the first is for all


@compiled
def wait(counters, thread, threads):
    """Wait until all threads are here."""
    counters[8 * (thread + 1)] += 1
    goal = counters[8 * (thread + 1)] * threads
    count_up(counters, 0)
    spins = 0
    while read_counter(counters, 0) < goal:
        spins += 1
        if spins > 4000:  # some 100 microseconds: another program has the other core
            yield_core()


@compiled
def gelu(x):
    """x Φ(x), with the error function to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26)."""
    z = abs(x) * np.float32(0.70710678)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
    y = np.float32(1.061405429) * t - np.float32(1.453152027)
    y = y * t + np.float32(1.421413741)
    y = y * t - np.float32(0.284496736)
    y = (y * t + np.float32(0.254829592)) * t * exponential(-z * z)
    below = np.float32(0.5) * y  # Φ(-|x|)
    return x * (below if x < np.float32(0.0) else np.float32(1.0) - below)


@compiled
def tile_product(rows, outputs, output_at, weights, weight_at, inputs, input_at, stride, depth):
    """Multiply a panel by up to 6 rows of inputs."""
    row = 0
    while row < rows:
        left = rows - row
        to, of = output_at + row * PANEL, input_at + row * stride
        if left >= 6:
            product_6(outputs, to, weights, weight_at, inputs, of, stride, depth)
            row += 6
        elif left >= 4:
            product_4(outputs, to, weights, weight_at, inputs, of, stride, depth)
            row += 4
        elif left >= 2:
            product_2(outputs, to, weights, weight_at, inputs, of, stride, depth)
            row += 2
        else:
            product_1(outputs, to, weights, weight_at, inputs, of, stride, depth)
            row += 1


@compiled
def finish(outputs, at, sums, sums_at, bias, bias_at, mode):
    """Put 64 sums where they belong."""
    to, some, more = outputs[at : at + PANEL], sums[sums_at : sums_at + PANEL], bias[bias_at : bias_at + PANEL]
    if mode == ADD:
        for j in range(PANEL):
            to[j] += some[j] + more[j]
    elif mode == GELU:
        for j in range(PANEL):
            to[j] = gelu(some[j] + more[j])
    elif mode == RELU:
        for j in range(PANEL):
            to[j] = max(some[j] + more[j], np.float32(0.0))
    elif mode == RELU_SQUARED:
        for j in range(PANEL):
            y = max(some[j] + more[j], np.float32(0.0))
            to[j] = y * y
    else:
        for j in range(PANEL):
            to[j] = some[j] + more[j]


def linear(thread, threads, rows, matrix, layer, inputs, stride, outputs, width, mode, work):
    """outputs = inputs · matrix + bias, this thread's panels of it; inputs are done, outputs are not waited for."""


@overload(linear, jit_options={"nogil": True, "error_model": "numpy"})
def _linear(thread, threads, rows, matrix, layer, inputs, stride, outputs, width, mode, work):
    if matrix.types[0].dtype == types.int8:
        return _linear_int8
    return _linear_float32


def _linear_float32(thread, threads, rows, matrix, layer, inputs, stride, outputs, width, mode, work):
    blocks = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    items = matrix.panels * blocks
    tile = thread * ROWS_AT_ONCE * PANEL
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        panel, block = item // blocks, item % blocks
        first = block * ROWS_AT_ONCE
        count = min(ROWS_AT_ONCE, rows - first)
        at = layer * matrix.panels + panel
        place = at * matrix.depth * PANEL
        tile_product(count, work.sums, tile, matrix.values, place, inputs, first * stride, stride, matrix.depth)
        for row in range(count):
            to = (first + row) * width + panel * PANEL
            finish(outputs, to, work.sums, tile + row * PANEL, matrix.bias, at * PANEL, mode)


def _linear_int8(thread, threads, rows, matrix, layer, inputs, stride, outputs, width, mode, work):
    # x ≈ s (c - 128) and w ≈ u d, with codes c and d and a scale a row and an output:  Σ x w ≈ s u (Σ c d - 128 Σ d)
    longest = len(work.codes) // len(work.code_scales)
    for row in range(thread, rows, threads):
        encode(inputs, row * stride, matrix.depth, work.codes, row * longest, work.code_scales, row)
    wait(work.counters, thread, threads)
    blocks = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    items = matrix.panels * blocks
    groups = (matrix.depth + 3) // 4
    tile = thread * ROWS_AT_ONCE * PANEL
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        panel, block = item // blocks, item % blocks
        first = block * ROWS_AT_ONCE
        count = min(ROWS_AT_ONCE, rows - first)
        at = layer * matrix.panels + panel
        place = at * groups * 4 * PANEL
        tile_product(count, work.whole_sums, tile, matrix.values, place, work.codes, first * longest, longest, groups)
        for row in range(count):
            scale = work.code_scales[first + row]
            of, columns = tile + row * PANEL, at * PANEL
            whole, offset = work.whole_sums[of : of + PANEL], matrix.sums[columns : columns + PANEL]
            sums, scales = work.sums[of : of + PANEL], matrix.scales[columns : columns + PANEL]
            for j in range(PANEL):
                sums[j] = np.float32(whole[j] - offset[j]) * (scale * scales[j])
            to = (first + row) * width + panel * PANEL
            finish(outputs, to, work.sums, of, matrix.bias, columns, mode)


@compiled
def encode(inputs, at, count, codes, codes_at, scales, row):
    """Write numbers as whole numbers from 1 to 255, which stand for -127 to 127 steps of the row's scale."""
    numbers, codes = inputs[at : at + count], codes[codes_at : codes_at + count]
    most = np.float32(0.0)
    for i in range(count):
        most = max(most, abs(numbers[i]))
    scale = most / np.float32(127.0)
    inverse = np.float32(127.0) / most if most > np.float32(0.0) else np.float32(0.0)
    for i in range(count):
        codes[i] = np.uint8(np.int32(np.floor(numbers[i] * inverse + np.float32(128.5))))
    scales[row] = scale


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
        of = (first + key % weights.ngram_rows[back - 1]) * shape.width
        together = weights.ngrams[of : of + D]
        for i in range(D):
            sums[i] += together[i]
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


@compiled
def forward(thread, threads, rows, kept, shape, weights, work):
    """Read `rows` tokens, and leave the logits of the rows whose numbers are in `kept`, in that order, in `logits`."""
    width, counters = shape.width, work.counters
    for row in range(thread, rows, threads):
        embed(shape, weights, work, row)
    for layer in range(shape.n_layer):
        for row in range(thread, rows, threads):
            if shape.modern:
                reminder = weights.reminders[layer]
                stream, start = (
                    work.stream[row * width : (row + 1) * width],
                    work.start[row * width : (row + 1) * width],
                )
                for i in range(width):
                    stream[i] += reminder * start[i]
            normalize(shape, weights, 2 * layer, work.stream, work.normed, row * width)
        wait(counters, thread, threads)
        matrix = weights.query_key_value
        linear(thread, threads, rows, matrix, layer, work.normed, width, work.projected, shape.projected, STORE, work)
        wait(counters, thread, threads)
        items = rows * shape.n_kv_head
        for item in range(thread * items // threads, (thread + 1) * items // threads):
            remember(shape, weights, work, layer, item // shape.n_kv_head, item % shape.n_kv_head)
        wait(counters, thread, threads)
        if layer == shape.n_layer - 1 and len(kept) < rows:  # nobody asks what the other rows would say
            if thread == 0:
                keep(shape, work, kept)
            rows = len(kept)
            wait(counters, thread, threads)
        items = rows * shape.n_head
        for item in range(thread * items // threads, (thread + 1) * items // threads):
            attend(shape, work, thread, layer, item // shape.n_head, item % shape.n_head)
        wait(counters, thread, threads)
        matrix = weights.attention_output
        linear(thread, threads, rows, matrix, layer, work.heads, width, work.stream, width, ADD, work)
        wait(counters, thread, threads)
        for row in range(thread, rows, threads):
            normalize(shape, weights, 2 * layer + 1, work.stream, work.normed, row * width)
        wait(counters, thread, threads)
        matrix, mode = weights.feed_forward_hidden, shape.activation
        linear(thread, threads, rows, matrix, layer, work.normed, width, work.hidden, shape.hidden, mode, work)
        wait(counters, thread, threads)
        matrix = weights.feed_forward_output
        linear(thread, threads, rows, matrix, layer, work.hidden, shape.hidden, work.stream, width, ADD, work)
        wait(counters, thread, threads)
    for row in range(thread, rows, threads):
        normalize(shape, weights, 2 * shape.n_layer, work.stream, work.normed, row * width)
    wait(counters, thread, threads)
    linear(thread, threads, rows, weights.head, 0, work.normed, width, work.logits, shape.scores, STORE, work)
    wait(counters, thread, threads)
    if shape.softcap > 0:
        cap = np.float32(shape.softcap)
        for row in range(thread, rows, threads):
            for i in range(row * shape.scores, row * shape.scores + shape.vocab_size):
                work.logits[i] = cap * np.tanh(work.logits[i] / cap)
        wait(counters, thread, threads)


@compiled
def keep(shape, work, kept):
    """Move the rows that are wanted to the front."""
    for to in range(len(kept)):
        row = kept[to]
        work.slots[to], work.positions[to] = work.slots[row], work.positions[row]
        for i in range(shape.width):
            work.stream[to * shape.width + i] = work.stream[row * shape.width + i]
        for i in range(shape.n_head * shape.head_size):
            work.projected[to * shape.projected + i] = work.projected[row * shape.projected + i]


@njit(nogil=True, error_model="numpy", cache=True)
def write(thread, threads, steps, rows, kept, uniforms_TB, tokens_TB, logits_TBV, shape, weights, work, sampler):
    """Read rows and choose the successors of those that are kept; then go on with these, `steps` steps in all.

    This is what Python calls, once a thread, and what is compiled and stored.
    """
    V = shape.vocab_size
    for step in range(steps):
        forward(thread, threads, rows, kept, shape, weights, work)
        rows = len(kept)
        for row in range(thread, rows, threads):
            slot, position = work.slots[row], work.positions[row] + 1
            logits = work.logits[row * shape.scores : row * shape.scores + V]
            scratch = work.scratch[thread * shape.scores : thread * shape.scores + V]
            token = choose(logits, slot, uniforms_TB[step, row], sampler, scratch)
            for i in range(V):
                logits_TBV[step, row, i] = logits[i]
            tokens_TB[step, row] = token
            sampler.counts_BV[slot, token] += 1
            work.tokens[row], work.positions[row] = token, position
            if position < shape.capacity:
                work.history[slot * shape.capacity + position] = token
        wait(work.counters, thread, threads)
