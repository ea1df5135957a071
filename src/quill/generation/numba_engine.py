"""proto"""
from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quill.generation.numba_step import (GELU, RELU, RELU_SQUARED, ROWS_AT_ONCE, Matrix, Shape, Weights, Work, compiled, forward)
from quill.generation.numba_vectors import PANEL
from quill.model.config import GPTConfig


def whole_panels(n): return -(-n // PANEL) * PANEL

def pack(weights_LNK, bias_LN, kind):
    L, N, K = weights_LNK.shape
    panels = -(-N // PANEL)
    padded = np.zeros((L, panels * PANEL, K), np.float32); padded[:, :N] = weights_LNK
    bias = np.zeros((L, panels * PANEL), np.float32)
    if bias_LN is not None: bias[:, :N] = bias_LN
    if kind == "fp32":
        values = np.ascontiguousarray(padded.reshape(L, panels, PANEL, K).transpose(0, 1, 3, 2)).ravel()
        return Matrix(values, np.zeros(1, np.float32), np.zeros(1, np.int32), bias.ravel(), K, panels)
    scale = np.abs(padded).max(2) / 127
    codes = np.rint(padded / np.where(scale > 0, scale, 1)[..., None]).astype(np.int8)
    groups = -(-K // 4)
    full = np.zeros((L, panels * PANEL, groups * 4), np.int8); full[..., :K] = codes
    values = np.ascontiguousarray(full.reshape(L, panels, PANEL, groups, 4).transpose(0, 1, 3, 2, 4)).ravel()
    sums = 128 * codes.astype(np.int32).sum(2)
    return Matrix(values, scale.astype(np.float32).ravel(), sums.astype(np.int32).ravel(), bias.ravel(), K, panels)

def pad(a, width):
    out = np.zeros((*a.shape[:-1], width), np.float32); out[..., :a.shape[-1]] = a
    return out.ravel()

def build(model, kind, threads, slots, rows):
    c = model.config
    modern = not isinstance(c, GPTConfig)
    p = {n: v.detach().float().numpy() for n, v in model.named_parameters()}
    L, D, H = c.n_layer, c.n_embd, c.n_head
    K = (c.n_kv_head or H) if modern else H
    E = D // H
    width, projected, hidden = whole_panels(D), whole_panels((H + 2 * K) * E), whole_panels(4 * D)
    scores, capacity = whole_panels(c.vocab_size), whole_panels(c.block_size)
    def stack(name):
        return np.stack([p[f"blocks.{l}.{name}.weight"] for l in range(L)]), (np.stack([p[f"blocks.{l}.{name}.bias"] for l in range(L)]) if f"blocks.0.{name}.bias" in p else None)
    head = p.get("head.weight", p["token_embedding.weight"])
    hb = p.get("head.bias")
    none = np.zeros(0, np.float32)
    if modern:
        norms = none; posit = none
        tables = [p[f"ngram_embedding.tables.{i}.weight"] for i in range(c.ngram - 1)]
        ngrams = pad(np.concatenate(tables), width) if tables else none
        nrows = np.array([len(t) for t in tables], np.int64)
        rot = model.blocks[0].attention.rotary
        cos, sin = rot.cosines_SE.numpy().ravel(), rot.sines_SE.numpy().ravel()
        rem = p["reminders"]
    else:
        names = [n for l in range(L) for n in (f"blocks.{l}.attention_norm", f"blocks.{l}.feed_forward_norm")] + ["final_norm"]
        norms = pad(np.stack([np.stack([p[n + ".weight"], p.get(n + ".bias", np.zeros(D, np.float32))]) for n in names]), width)
        posit = pad(p["position_embedding.weight"], width)
        ngrams, nrows, rem, cos, sin = none, np.zeros(0, np.int64), none, none, none
    shape = Shape(modern, L, H, K, E, D, c.vocab_size, RELU_SQUARED if modern else (GELU if c.activation == "gelu" else RELU),
                  1e-6 if modern else 1e-5, model.blocks[0].attention.scale if modern else 1 / math.sqrt(E),
                  c.logit_softcap if modern else 0.0, width, projected, hidden, scores, capacity)
    weights = Weights(pad(p["token_embedding.weight"], width), posit, norms,
        pack(*stack("attention.query_key_value"), kind), pack(*stack("attention.output"), kind),
        pack(*stack("feed_forward.hidden"), kind), pack(*stack("feed_forward.output"), kind),
        pack(head[None], None if hb is None else hb[None], kind), ngrams, nrows, rem, cos, sin)
    f = lambda *s: np.zeros(math.prod(s), np.float32)
    work = Work(f(slots, L, K, capacity, E), f(slots, L, K, whole_panels(E), capacity), np.zeros(slots * capacity, np.int64),
        np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64), f(rows, width), f(rows, width), f(rows, width),
        f(rows, projected), f(rows, width), f(rows, hidden), f(rows, scores), np.zeros(rows * hidden, np.uint8), f(rows),
        f(threads, ROWS_AT_ONCE * PANEL), np.zeros(threads * ROWS_AT_ONCE * PANEL, np.int32), f(threads, capacity), np.zeros(8 * (threads + 1), np.int64))
    return shape, weights, work

@compiled
def run(thread, threads, rows, kept, shape, weights, work):
    forward(thread, threads, rows, kept, shape, weights, work)

@compiled
def loop(steps, thread, threads, rows, kept, shape, weights, work):
    for s in range(steps):
        forward(thread, threads, rows, kept, shape, weights, work)
