"""Linear maps of the compiled step in float32 or int8, with their epilogue: bias, residual addition, activation.

Nearly all the time of generation is spent here. A thread takes panels of 64 outputs, and reads each panel once for up
to six rows. All threads meet in `wait`.

Source: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", section 5.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from quill.engines.numba_step.sampling import OPTIONS, arithmetic, compiled
from quill.engines.numba_step.simd import (
    add_to_counter,
    pause,
    product_1,
    product_2,
    product_4,
    product_6,
    read_counter,
    sleep_while_equal,
    wake_sleepers,
)
from quill.engines.numba_step.workspace import (
    ADD,
    ARRIVED,
    FEW,
    GELU,
    PANEL,
    RELU,
    RELU_SQUARED,
    ROWS_AT_ONCE,
    SLEEPING,
    SLEEPS,
    SPINS,
)


@compiled
def wait(counters, thread, threads):
    """Wait until all threads have called this: spin for a while, then sleep, so that other programs get the core."""
    if threads == 1:
        return
    own = 8 * (thread + 1)
    counters[own] += 1
    goal = counters[own] * threads
    if add_to_counter(counters, ARRIVED, 1) == goal:  # the last one
        if read_counter(counters, SLEEPING) > 0:
            wake_sleepers(counters, ARRIVED)
        return
    spins = 0
    while read_counter(counters, ARRIVED) < goal:
        pause()
        spins += 1
        if spins > SPINS:
            counters[own + SLEEPS] += 1
            add_to_counter(counters, SLEEPING, 1)
            arrived = read_counter(counters, ARRIVED)
            while arrived < goal:
                sleep_while_equal(counters, ARRIVED, arrived)
                arrived = read_counter(counters, ARRIVED)
            add_to_counter(counters, SLEEPING, -1)
            return


@arithmetic
def gelu(x):
    """x Φ(x) = x/2 (1 + erf(x/√2)), to 5e-7; erf is z P(z²) / Q(z²), fitted to 5e-8 where it is not yet 1."""
    z = min(max(x * np.float32(0.70710678), np.float32(-4.0)), np.float32(4.0))
    u = z * z
    p = np.float32(1.964167333e-8) * u - np.float32(1.991552252e-6)
    p = p * u + np.float32(1.513408396e-4)
    p = p * u + np.float32(4.090066151e-3)
    p = p * u + np.float32(5.177686839e-2)
    p = p * u + np.float32(2.089922209e-1)
    p = p * u + np.float32(1.128378742)
    q = np.float32(1.051045346e-3) * u + np.float32(1.513173140e-2)
    q = q * u + np.float32(1.187524133e-1)
    q = q * u + np.float32(5.185429070e-1)
    q = q * u + np.float32(1.0)
    half = np.float32(0.5) * x
    return half + half * (z * p / q)


@compiled
def tile_product(rows, outputs, output_at, weights, weight_at, inputs, input_at, stride, depth):
    """Multiply a panel of weights by up to 6 rows of inputs, into a tile of sums."""
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
def epilogue(outputs, output_at, sums, sums_at, bias, bias_at, mode):
    """Add the bias to 64 sums, and store, add or activate the results."""
    out = outputs[output_at : output_at + PANEL]
    product, more = sums[sums_at : sums_at + PANEL], bias[bias_at : bias_at + PANEL]
    if mode == ADD:
        for j in range(PANEL):
            out[j] += product[j] + more[j]
    elif mode == GELU:
        for j in range(PANEL):
            out[j] = gelu(product[j] + more[j])
    elif mode == RELU:
        for j in range(PANEL):
            out[j] = max(product[j] + more[j], np.float32(0.0))
    elif mode == RELU_SQUARED:
        for j in range(PANEL):
            y = max(product[j] + more[j], np.float32(0.0))
            out[j] = y * y
    else:
        for j in range(PANEL):
            out[j] = product[j] + more[j]


@compiled
def block_of(item, blocks, rows):
    """Return the panel, the first row and the number of rows of one item of work."""
    first = item % blocks * ROWS_AT_ONCE
    return item // blocks, first, min(ROWS_AT_ONCE, rows - first)


@compiled
def own_rows(thread, threads, work):
    """Return the first of the FEW rows that only this thread writes, after those of all threads."""
    return len(work.code_scales) - (threads - thread) * FEW


def linear(thread, threads, rows, matrix, layer, inputs, first_input, stride, outputs, width, mode, work):
    """Compute outputs = epilogue(inputs · matrix + bias), this thread's panels of it.

    The inputs must be complete. The outputs of all threads are complete after the next `wait`.
    """


@overload(linear, jit_options=OPTIONS)
def _linear(thread, threads, rows, matrix, layer, inputs, first_input, stride, outputs, width, mode, work):
    if matrix.fields.types[0].dtype == types.int8:
        return _linear_int8
    return _linear_float32


def _linear_float32(thread, threads, rows, matrix, layer, inputs, first_input, stride, outputs, width, mode, work):
    blocks = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    items = matrix.panels * blocks
    tile = thread * ROWS_AT_ONCE * PANEL
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        panel, first, count = block_of(item, blocks, rows)
        at = layer * matrix.panels + panel
        panel_at, input_at = at * matrix.depth * PANEL, (first_input + first) * stride
        tile_product(count, work.sums, tile, matrix.values, panel_at, inputs, input_at, stride, matrix.depth)
        for row in range(count):
            to = (first + row) * width + panel * PANEL
            epilogue(outputs, to, work.sums, tile + row * PANEL, matrix.bias, at * PANEL, mode)


def _linear_int8(thread, threads, rows, matrix, layer, inputs, first_input, stride, outputs, width, mode, work):
    # x ≈ s (c - 128) and w ≈ u d, with codes c and d, scale s of the row and u of the output:
    # Σ x w ≈ s u (Σ c d - 128 Σ d)
    longest = len(work.codes) // len(work.code_scales)
    first_code = 0
    if rows <= FEW:
        first_code = own_rows(thread, threads, work)
        for row in range(rows):
            of, to = (first_input + row) * stride, first_code + row
            quantize_row(inputs, of, matrix.depth, work.codes, to * longest, work.code_scales, to)
    else:
        for row in range(thread, rows, threads):
            of = (first_input + row) * stride
            quantize_row(inputs, of, matrix.depth, work.codes, row * longest, work.code_scales, row)
        wait(work.counters, thread, threads)
    blocks = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    items = matrix.panels * blocks
    groups = (matrix.depth + 3) // 4
    tile = thread * ROWS_AT_ONCE * PANEL
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        panel, first, count = block_of(item, blocks, rows)
        at = layer * matrix.panels + panel
        panel_at = at * groups * 4 * PANEL
        of = (first_code + first) * longest
        tile_product(count, work.whole_sums, tile, matrix.values, panel_at, work.codes, of, longest, groups)
        for row in range(count):
            scale = work.code_scales[first_code + first + row]
            sums_at, columns = tile + row * PANEL, at * PANEL
            whole, offset = work.whole_sums[sums_at : sums_at + PANEL], matrix.sums[columns : columns + PANEL]
            sums, scales = work.sums[sums_at : sums_at + PANEL], matrix.scales[columns : columns + PANEL]
            for j in range(PANEL):
                sums[j] = np.float32(whole[j] - offset[j]) * (scale * scales[j])
            to = (first + row) * width + panel * PANEL
            epilogue(outputs, to, work.sums, sums_at, matrix.bias, columns, mode)


@compiled
def quantize_row(inputs, at, count, codes, codes_at, scales, row):
    """Write numbers as codes from 1 to 255, which are -127 to 127 steps of the row's scale."""
    numbers, codes = inputs[at : at + count], codes[codes_at : codes_at + count]
    most = np.float32(0.0)
    for i in range(count):
        most = max(most, abs(numbers[i]))
    scale = most / np.float32(127.0)
    inverse = np.float32(127.0) / most if most > np.float32(0.0) else np.float32(0.0)
    for i in range(count):
        codes[i] = np.uint8(np.int32(np.floor(numbers[i] * inverse + np.float32(128.5))))
    scales[row] = scale
