"""One step of a GPT on a CPU, compiled by Numba: token ids of a batch of rows in, next-token logits out.

It is model/gpt.py and model/modern.py in loops instead of tensor operations; tests compare them. A prompt is many rows
of one sequence, a decoding batch is one row each of many sequences; both are this step. The result of a row does not
depend on the other rows, because every sum is computed in a fixed order.

All threads call every function of this file together. Each computes its share between two calls of `wait`.

Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2. How it is made fast: docs/speed.md.
"""

from __future__ import annotations

import numpy as np

from quill.engines.numba_step.layers import add_embedding_skip, attend_tile, embed, normalize_row, write_kv
from quill.engines.numba_step.linear import linear, own_rows, wait
from quill.engines.numba_step.sampling import choose, compiled
from quill.engines.numba_step.workspace import ADD, FEW, ROWS_AT_ONCE, STORE


@compiled
def forward(thread, threads, rows, kept, shape, weights, work):
    """Compute `rows` tokens, and write the logits of the rows in `kept`, in this order, to `work.logits`."""
    width, counters = shape.width, work.counters
    apart = len(kept) == rows  # whether each row is of another sequence, so that no row attends to another
    for row in range(1, rows):
        apart = apart and work.slots[row] != work.slots[row - 1]
    for row in range(thread, rows, threads):
        embed(shape, weights, work, row)
    wait(counters, thread, threads)
    for layer in range(shape.n_layer):
        if shape.modern:
            for row in range(thread, rows, threads):
                add_embedding_skip(shape, weights, work, layer, row)
            wait(counters, thread, threads)
        first = normalize_rows(thread, threads, rows, shape, weights, work, 2 * layer)
        matrix, inputs = weights.query_key_value, work.normed
        linear(thread, threads, rows, matrix, layer, inputs, first, width, work.projected, shape.projected, STORE, work)
        wait(counters, thread, threads)
        rows = attention(thread, threads, rows, kept, apart, layer, shape, work)
        wait(counters, thread, threads)
        matrix = weights.attention_output
        linear(thread, threads, rows, matrix, layer, work.heads, 0, width, work.stream, width, ADD, work)
        wait(counters, thread, threads)
        first = normalize_rows(thread, threads, rows, shape, weights, work, 2 * layer + 1)
        matrix, epilogue = weights.feed_forward_hidden, shape.activation
        linear(thread, threads, rows, matrix, layer, inputs, first, width, work.hidden, shape.hidden, epilogue, work)
        wait(counters, thread, threads)
        matrix = weights.feed_forward_output
        linear(thread, threads, rows, matrix, layer, work.hidden, 0, shape.hidden, work.stream, width, ADD, work)
        wait(counters, thread, threads)
    first = normalize_rows(thread, threads, rows, shape, weights, work, 2 * shape.n_layer)
    linear(thread, threads, rows, weights.head, 0, work.normed, first, width, work.logits, shape.scores, STORE, work)
    wait(counters, thread, threads)
    if shape.softcap > 0:
        cap = np.float32(shape.softcap)
        for row in range(thread, rows, threads):
            for i in range(row * shape.scores, row * shape.scores + shape.vocab_size):
                work.logits[i] = cap * np.tanh(work.logits[i] / cap)
        wait(counters, thread, threads)


@compiled
def normalize_rows(thread, threads, rows, shape, weights, work, norm):
    """Normalise all rows for the linear map that follows, and return the first row of `normed` that has them.

    Each thread normalises few rows for itself: waiting for another thread would take longer.
    """
    width = shape.width
    if rows <= FEW:
        first = own_rows(thread, threads, work)
        for row in range(rows):
            normalize_row(shape, weights, norm, work.stream, row * width, work.normed, (first + row) * width)
        return first
    for row in range(thread, rows, threads):
        normalize_row(shape, weights, norm, work.stream, row * width, work.normed, row * width)
    wait(work.counters, thread, threads)
    return 0


@compiled
def attention(thread, threads, rows, kept, apart, layer, shape, work):
    """Compute attention of all rows; return how many rows continue: in the last layer only those in `kept`."""
    group = shape.n_head // shape.n_kv_head
    items = rows * shape.n_kv_head
    for item in range(thread, items, threads):
        row, head = item // shape.n_kv_head, item % shape.n_kv_head
        write_kv(shape, work, layer, row, head)
        if apart:
            for query in range(head * group, (head + 1) * group):
                attend_tile(shape, work, thread, layer, row, 1, query)
    if apart:
        return rows
    wait(work.counters, thread, threads)
    if layer == shape.n_layer - 1 and len(kept) < rows:  # the logits of the other rows are not needed
        if thread == 0:
            gather_rows(shape, work, kept)
        rows = len(kept)
        wait(work.counters, thread, threads)
    # Tiles are assigned in turn: later rows attend to more tokens, so equal ranges of rows would not be equal work.
    item = first = 0
    while first < rows:
        count = 1
        while count < ROWS_AT_ONCE and first + count < rows and work.slots[first + count] == work.slots[first]:
            count += 1
        for head in range(shape.n_head):
            if item % threads == thread:
                attend_tile(shape, work, thread, layer, first, count, head)
            item += 1
        first += count
    return rows


@compiled
def gather_rows(shape, work, kept):
    """Move the rows in `kept` to the front."""
    for to in range(len(kept)):
        row = kept[to]
        work.slots[to], work.positions[to] = work.slots[row], work.positions[row]
        for i in range(shape.width):
            work.stream[to * shape.width + i] = work.stream[row * shape.width + i]
        for i in range(shape.n_head * shape.head_size):
            work.projected[to * shape.projected + i] = work.projected[row * shape.projected + i]


@compiled
def decode_steps(thread, arguments):
    """Compute rows and choose the next tokens of those in `kept`, then repeat with these, as described by `Call`.

    Every thread calls this with its number.
    """
    call, shape, weights = arguments.call, arguments.shape, arguments.weights
    work, sampler = arguments.work, arguments.sampler
    threads, rows, kept, V = call.threads, call.rows, call.kept, shape.vocab_size
    for step in range(call.steps):
        forward(thread, threads, rows, kept, shape, weights, work)
        rows = len(kept)
        for row in range(thread, rows, threads):
            slot = work.slots[row]
            logits = work.logits[row * shape.scores : row * shape.scores + V]
            at, more = 2 * thread * shape.scores, (2 * thread + 1) * shape.scores
            scores, ordered = work.scratch[at : at + V], work.scratch[more : more + V]
            token = choose(logits, slot, call.uniforms_TB[step, row], sampler, scores, ordered)
            for i in range(V):
                call.logits_TBV[step, row, i] = logits[i]
            call.tokens_TB[step, row] = token
            sampler.counts_BV[slot, token] += 1
            work.tokens[row] = token
            work.positions[row] += 1
        wait(work.counters, thread, threads)
