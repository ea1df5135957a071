"""One step of a GPT for a CPU, compiled by Numba: from some tokens of some texts to the scores of their successors.

On the way text → tokens → model → training → generation → people this is the inside of the quickest CPU engine. It is
model/gpt.py and model/modern.py once more, in loops instead of tensors, and a test proves them equal. A prompt is read
as many rows of one text, a batch as one row of many texts: both are this same step, and what a row gives does not
depend on the rows beside it, because each number is added up in an order of its own.

All threads run every function here together. Each does its share of the work between two calls of `wait`.

Reference: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2. How it is made fast: docs/speed.md.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from quill.generation.compiled.linear import linear, wait
from quill.generation.compiled.parts import attend, embed, normalize, remember
from quill.generation.compiled.sampling import choose, compiled
from quill.generation.compiled.state import ADD, STORE


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
