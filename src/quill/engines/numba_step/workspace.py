"""What the compiled step reads and writes: sizes, weights and room for all that comes between, as plain arrays.

On the way text → tokens → model → training → generation → people this is the data of the quickest CPU engine. Arrays
are flat; widths are rounded up to whole panels of 64, and what is beyond the end of a row is always 0.

Reference: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", section 4, for panels.

Shapes: R rows    D width    E size of a head    K heads of keys and values    S tokens    V vocabulary    L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LANES = 16  # numbers in a vector
PANEL = 64  # outputs that are computed side by side: four vectors
ROWS_AT_ONCE = 6  # rows that share each weight they load: 24 sums and 4 weights fit the 32 registers of AVX-512
FEW = 2  # rows that each thread prepares for itself
ARRIVED, SLEEPING = 0, 1  # counters of all threads
PATIENCE, SLEEPS = 1, 2  # counters of one thread, behind how often it has waited: its longest spin, how often it slept
LEAST_SPINS, MOST_SPINS = 60, 4000  # the longest takes some 100 microseconds
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
    context: int  # places of a text
    window: int  # the last of these places, which are a ring once all are full; 0 where positions cannot roll
    capacity: int  # room for the places, in whole panels


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
    ngrams: np.ndarray  # all rows of all tables, width; float32 or int8
    ngram_scales: np.ndarray  # what one step of each row is worth; 1 for float32
    ngram_rows: np.ndarray  # how many each table has
    reminders: np.ndarray  # L
    cosines: np.ndarray  # S E/2
    sines: np.ndarray
    frequencies: np.ndarray  # E/2, float64: radians a token, for positions beyond these tables


class Work(NamedTuple):
    """What a step writes: the state of all texts, and room for what comes between."""

    keys: np.ndarray  # slot L K panel-of-S E 64
    values: np.ndarray  # slot L K panel-of-E S 64
    history: np.ndarray  # slot S: the tokens that are held
    tokens: np.ndarray  # R
    slots: np.ndarray  # R
    positions: np.ndarray  # R: in the text; how many tokens come before
    cosines: np.ndarray  # R E/2: of these positions
    sines: np.ndarray
    stream: np.ndarray  # R width: the residual stream
    start: np.ndarray  # R width: what it began with
    normed: np.ndarray  # R width, and then FEW rows for each thread
    projected: np.ndarray  # R queries, keys, values
    heads: np.ndarray  # R width
    hidden: np.ndarray  # R hidden
    logits: np.ndarray  # R scores
    scratch: np.ndarray  # thread, twice, scores
    codes: np.ndarray  # as many, uint8: inputs of an int8 product
    code_scales: np.ndarray  # as many
    sums: np.ndarray  # thread: a tile of float32 sums
    whole_sums: np.ndarray  # thread: a tile of int32 sums
    attention: np.ndarray  # thread: the shares of a tile of rows, S each
    counters: np.ndarray  # a cache line of 8 for all threads, and then one for each


class Sampler(NamedTuple):
    """How each slot chooses its tokens. B slots."""

    temperature_B: np.ndarray
    top_k_B: np.ndarray  # V keeps all
    top_p_B: np.ndarray  # 1 keeps all
    min_p_B: np.ndarray  # logarithm; minus infinity keeps all
    presence_B: np.ndarray
    frequency_B: np.ndarray
    repetition_B: np.ndarray
    plain_B: np.ndarray  # neither biases nor penalties
    bias_BV: np.ndarray
    seen_BV: np.ndarray  # tokens of the prompt
    counts_BV: np.ndarray  # how often each was written


class Call(NamedTuple):
    """What is asked for: read `rows` tokens, choose successors of those in `kept`, and go on with these."""

    threads: int
    steps: int
    rows: int
    kept: np.ndarray
    uniforms_TB: np.ndarray
    tokens_TB: np.ndarray
    logits_TBV: np.ndarray


class Everything(NamedTuple):
    """All that the compiled step is given."""

    call: Call
    shape: Shape
    weights: Weights
    work: Work
    sampler: Sampler
