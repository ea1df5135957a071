"""The arguments of the compiled step: sizes, weights, buffers and the state of all sequences, as plain arrays.

Arrays are flat. Rows are padded to whole panels of 64 numbers, and the padding is always 0.

Source: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", section 4, for panels.

Shapes: R rows    D width    E head size    K heads of keys and values    S cached tokens    V vocabulary    L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LANES = 16  # numbers in a vector
PANEL = 64  # outputs that are computed together: four vectors
ROWS_AT_ONCE = 6  # rows that share each weight they load: 24 sums and 4 weights fit the 32 registers of AVX-512
FEW = 2  # up to this many rows, each thread normalises all of them for itself
ARRIVED, SLEEPING = 0, 1  # counters of all threads
SLEEPS = 1  # of the counters of one thread, after its number of waits: how often it slept
SPINS = 4000  # before a thread sleeps: about 100 microseconds, as long as sleeping and waking take
STORE, ADD, GELU, RELU, RELU_SQUARED = range(5)  # epilogues of a product


class Matrix(NamedTuple):
    """One linear map of every layer in panels of 64 outputs: values[layer][panel][input][output]."""

    values: np.ndarray  # float32; or int8 in groups of four inputs: values[layer][panel][group][output][4]
    scales: np.ndarray  # float32, one an output: the value of one step of int8
    sums: np.ndarray  # int32, one an output: 128 times the sum of its codes, because codes of inputs are offset by 128
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
    width: int  # of a row of the residual stream, padded
    projected: int  # of a row of queries, keys and values, padded
    hidden: int  # padded
    scores: int  # of a row of logits, padded
    context: int  # tokens in the cache of a sequence
    window: int  # the last of its entries, which are a ring once all are used; 0 where positions cannot roll
    capacity: int  # number of entries, padded


class Weights(NamedTuple):
    """The weights of a model."""

    token_embedding: np.ndarray  # V width
    position_embedding: np.ndarray  # S width; empty in a modern model
    norms: np.ndarray  # 2 L + 1, weight and bias, width; empty in a modern model
    query_key_value: Matrix
    attention_output: Matrix
    feed_forward_hidden: Matrix
    feed_forward_output: Matrix
    head: Matrix
    ngrams: np.ndarray  # all rows of all tables, width; float32 or int8
    ngram_scales: np.ndarray  # one a row: the value of one step of int8; 1 for float32
    ngram_rows: np.ndarray  # the number of rows of each table
    embedding_skip: np.ndarray  # L
    cosines: np.ndarray  # S E/2
    sines: np.ndarray
    frequencies: np.ndarray  # E/2, float64: radians a token, for positions beyond these tables


class Workspace(NamedTuple):
    """Memory that a step writes: the state of all sequences, and buffers."""

    keys: np.ndarray  # slot L K panel-of-S E 64
    values: np.ndarray  # slot L K panel-of-E S 64
    history: np.ndarray  # slot S: the cached tokens
    tokens: np.ndarray  # R
    slots: np.ndarray  # R
    positions: np.ndarray  # R: the number of tokens before it in its sequence
    cosines: np.ndarray  # R E/2: of these positions
    sines: np.ndarray
    stream: np.ndarray  # R width: the residual stream
    start: np.ndarray  # R width: the residual stream before the first layer
    normed: np.ndarray  # R width, then FEW rows for each thread
    projected: np.ndarray  # R queries, keys, values
    heads: np.ndarray  # R width: outputs of attention
    hidden: np.ndarray  # R hidden
    logits: np.ndarray  # R scores
    scratch: np.ndarray  # two rows of logits for each thread
    codes: np.ndarray  # uint8: inputs of an int8 product, rows as in `normed`
    code_scales: np.ndarray  # one a row of `codes`
    sums: np.ndarray  # a tile of float32 sums for each thread
    whole_sums: np.ndarray  # a tile of int32 sums for each thread
    attention: np.ndarray  # attention weights of a tile of rows for each thread, S each
    counters: np.ndarray  # a cache line of 8 for all threads, then one for each thread


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
    counts_BV: np.ndarray  # how often each token was generated


class Call(NamedTuple):
    """One call: compute `rows` tokens, choose the next tokens of those in `kept`, and repeat with the chosen tokens."""

    threads: int
    steps: int
    rows: int
    kept: np.ndarray
    uniforms_TB: np.ndarray
    tokens_TB: np.ndarray
    logits_TBV: np.ndarray


class KernelArgs(NamedTuple):
    """All arguments of the compiled step."""

    call: Call
    shape: Shape
    weights: Weights
    work: Workspace
    sampler: Sampler
