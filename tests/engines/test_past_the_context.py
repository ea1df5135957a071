"""Rolling windows: past its context a modern model takes one row a token, and gives what a mask gives."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from near_ties import assert_same_text
from torch import Tensor
from torch.nn import functional as F

from quill.engines.base import Engine, PrefillInput
from quill.engines.cuda_engine import CudaEngine
from quill.engines.make import arrays_of, make_engine
from quill.engines.numba_engine import NumbaEngine
from quill.engines.request import Request, SamplingConfig
from quill.engines.torch_engine import TorchEngine
from quill.errors import ConfigError
from quill.generation.batch_generator import BatchGenerator
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModernConfig
from quill.model.modern import Block, ModernGPT
from quill.model.rotary import ROPE_BASE

SMALL = ModernConfig(vocab_size=23, block_size=32, n_layer=2, n_head=4, n_embd=32, ngram_rows=97)
CONFIGS = [
    pytest.param(SMALL, id="small"),
    pytest.param(replace(SMALL, n_kv_head=2, ngram=2, logit_softcap=0.0), id="shared keys"),
    pytest.param(replace(SMALL, block_size=150, n_head=1), id="a window that begins inside a panel"),
    pytest.param(replace(SMALL, block_size=3), id="a window of two"),
    pytest.param(replace(SMALL, block_size=1), id="a window of one"),
]


def engine_of(model: ModernGPT, name: str, slots: int = 1) -> Engine:
    """Any engine on a CPU, where the one for GPUs does its steps one operation after another."""
    return CudaEngine(model, slots=slots) if name == "cuda" else make_engine(model, name, slots=slots)


each_engine = pytest.mark.parametrize("name", ["torch", "numba", "cuda"])


def random_model(config: ModernConfig) -> ModernGPT:
    """A model whose every weight matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ModernGPT(config).eval()
        for name, parameter in model.named_parameters():
            if name != "embedding_skip":
                parameter.data.normal_(std=0.3)
    return model


@torch.no_grad()
def by_a_mask(model: ModernGPT, tokens_T: Tensor) -> Tensor:
    """Return logits_TV of a text of any length without a cache, every position counted from its beginning.

    Token t sees all before it within the context, and beyond it the last `rolling_window` tokens.
    """
    c, T, V = model.config, len(tokens_T), model.config.vocab_size
    first_T = [0 if t < c.block_size else t - c.rolling_window + 1 for t in range(T)]
    mask_TS = torch.tensor([[first <= s <= t for s in range(T)] for t, first in enumerate(first_T)])
    x_TD = model.token_embedding(tokens_T)
    for back, weight_RD in enumerate(model.ngram_embedding.parameters(), start=1):
        for t, first in enumerate(first_T):
            run = [int(tokens_T[t - i]) if t - i >= first else V for i in range(back + 1)]
            x_TD[t] += weight_RD[sum(token * (V + 1) ** i for i, token in enumerate(run)) % len(weight_RD)]
    x_TD = x0_TD = model.embedding_norm(x_TD)
    H, K, E = c.n_head, c.n_kv_head or c.n_head, c.n_embd // c.n_head
    angles_TE = torch.arange(T).double()[:, None] * ROPE_BASE ** -torch.linspace(0, 1, E // 2, dtype=torch.float64)
    turns_TE = torch.polar(torch.ones_like(angles_TE), angles_TE)
    for block, reminder in zip(model.blocks, model.embedding_skip, strict=True):
        assert isinstance(block, Block)
        x_TD = x_TD + reminder * x0_TD
        qkv_HTE = block.attention.query_key_value(block.attention_norm(x_TD)).view(T, H + 2 * K, E).transpose(0, 1)
        qk_HTE = F.rms_norm(qkv_HTE[: H + K], (E,), eps=1e-6).double()
        turned = torch.view_as_complex(qk_HTE.unflatten(-1, (-1, 2)).contiguous()) * turns_TE
        qk_HTE = torch.view_as_real(turned).flatten(-2).to(x_TD.dtype)
        k_HTE, v_HTE = (x.repeat_interleave(H // K, 0) for x in (qk_HTE[H:], qkv_HTE[H + K :]))
        scores_HTS = (qk_HTE[:H] @ k_HTE.mT * block.attention.scale).masked_fill(~mask_TS, float("-inf"))
        x_TD = x_TD + block.attention.output((scores_HTS.softmax(-1) @ v_HTE).transpose(0, 1).flatten(1))
        x_TD = x_TD + block.feed_forward(block.feed_forward_norm(x_TD))
    logits_TV = model.head(model.final_norm(x_TD))
    return c.logit_softcap * torch.tanh(logits_TV / c.logit_softcap) if c.logit_softcap else logits_TV


def random_tokens(config: ModernConfig, count: int) -> Tensor:
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("prompt", [1, None], ids=["token by token", "a whole context first"])
@torch.no_grad()
def test_a_cache_that_rolls_gives_what_a_mask_gives(config: ModernConfig, prompt: int | None) -> None:
    model, T = random_model(config).double(), 5 * config.block_size + 7
    tokens_1T = random_tokens(config, T)[None]
    cache, first = KVCache(config, dtype=torch.float64), prompt or config.block_size
    pieces = tokens_1T.split([first, *[1] * (T - first)], dim=1)
    rolled_TV = torch.cat([model(piece, cache)[0] for piece in pieces])
    assert cache.rolled and cache.length == T
    torch.testing.assert_close(rolled_TV, by_a_mask(model, tokens_1T[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_compiled_step_past_the_context_gives_what_a_mask_gives(config: ModernConfig) -> None:
    model, T = random_model(config), 4 * config.block_size + 9
    written, logits_TV = written_by(engine_of(model, "numba"), T)
    expected_TV = by_a_mask(model, torch.tensor([1, *written[:-1]]))
    np.testing.assert_allclose(logits_TV, expected_TV.numpy(), rtol=0, atol=1e-4)


def written_by(engine: Engine, count: int, position: int | None = None) -> tuple[list[int], np.ndarray]:
    """Let an engine write behind token 1, and return the tokens and logits_TV that they were chosen from.

    With a position the slot is as empty as a new one, but its next token counts as the one at that position.
    """
    engine.assign(0, Request((1,), count, seed=3))
    parts = [engine.prefill([PrefillInput(0, (1,), 0)])]
    if position is not None:
        move(engine, position)
    parts += [engine.decode([0], 1) for _ in range(count - 1)]
    tokens_T = np.concatenate([part.tokens_TB[:, 0] for part in parts])
    return tokens_T.tolist(), np.concatenate([part.logits_TBV[:, 0] for part in parts])


def move(engine: Engine, position: int) -> None:
    if isinstance(engine, NumbaEngine):
        engine.sequences[0].position = position
    elif isinstance(engine, CudaEngine):
        engine.static.cache.positions_B[0] = position
    else:
        assert isinstance(engine, TorchEngine)
        cache = engine.sequences[0].cache
        assert cache is not None
        cache.length = position


@each_engine
@pytest.mark.parametrize("position", [1_000_000, 123_456_789])
def test_logits_after_a_million_tokens_equal_those_of_a_short_text(name: str, position: int) -> None:
    # What came before is forgotten once it has left the window of every layer: then only distances are left, and a
    # slot that was moved far from its beginning gives what one that counts from 0 gives.
    model, forgotten = random_model(SMALL), (SMALL.n_layer + 1) * SMALL.block_size
    written, logits_TV = written_by(engine_of(model, name), forgotten + 50, position)
    near_TV = by_a_mask(model, torch.tensor(written[:-1]))
    np.testing.assert_allclose(logits_TV[1 + forgotten :], near_TV[forgotten:].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_both_engines_generate_the_same_thousand_tokens_past_the_context(seed: int) -> None:
    how, V = SamplingConfig(0.9, top_k=20), SMALL.vocab_size
    model, request = random_model(SMALL), Request((1, 2, 3), 1000, how, seed, logprobs=V)
    one, other = (
        [event.token for _, event in BatchGenerator(engine_of(model, name)).follow([request]) if event.token]
        for name in ("torch", "numba")
    )
    assert_same_text(request, one, other)
    assert len({token.token_id for token in one[-100:]}) > 5


def tokens_of(engine: Engine | BatchGenerator, request: Request) -> list[int]:
    batch = engine if isinstance(engine, BatchGenerator) else BatchGenerator(engine)
    return [event.token.token_id for _, event in batch.follow([request]) if event.token]


def counting(model: ModernGPT, name: str, rows: list[int]) -> Engine:
    """Return an engine that adds the number of rows of each of its passes through the model to `rows`."""
    if name == "numba":
        return NumbaEngine(model.config, arrays_of(model), on_pass=rows.append)
    engine = engine_of(model, name)
    for each in {model, engine.static.twin if isinstance(engine, CudaEngine) else model}:
        each.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].numel()))
    return engine


@each_engine
@pytest.mark.parametrize("prompt", [5, 32, 100])
def test_past_the_context_each_token_costs_exactly_one_row(name: str, prompt: int) -> None:
    rows: list[int] = []
    engine = counting(random_model(SMALL), name, rows)
    assert len(tokens_of(engine, Request(tuple(random_tokens(SMALL, prompt).tolist()), 200))) == 200
    assert rows == [min(prompt, 32), *[1] * 199]


@each_engine
def test_only_the_end_of_a_prompt_longer_than_the_context_is_read(name: str) -> None:
    model, prompt = random_model(SMALL), tuple(random_tokens(SMALL, 75).tolist())
    whole, end = (tokens_of(engine_of(model, name), Request(p, 100)) for p in (prompt, prompt[-32:]))
    assert whole == end


@functools.cache
def newcomers_of(name: str) -> tuple[ModernGPT, tuple[int, ...], list[Request], list[list[int]]]:
    """Return a model, the beginning of a prompt, requests that share a part of it, and the tokens each gets alone."""
    model, beginning = random_model(SMALL), tuple(random_tokens(SMALL, 12).tolist())
    newcomers = [Request((*beginning[:shared], 7, 8), 40, row=shared) for shared in (1, 2, 3, 12)]
    return model, beginning, newcomers, [tokens_of(engine_of(model, name, slots=2), each) for each in newcomers]


# The core suite has every length with the compiled step, and one next to the boundary with each of the slower engines.
READ = [
    pytest.param(
        name, read, marks=[] if name == "numba" or (name, read) in (("torch", 31), ("cuda", 32)) else [pytest.mark.long]
    )
    for name in ("torch", "numba", "cuda")
    for read in (3, 30, 31, 32, 33, 34, 50, 200)
]


@pytest.mark.parametrize(("name", "read"), READ)
def test_a_slot_that_has_rolled_shares_no_overwritten_tokens(name: str, read: int) -> None:
    # 12 tokens of prompt: the slot is full when 20 more are read. The first text ends there, before or behind it.
    model, beginning, newcomers, expected = newcomers_of(name)
    batch = BatchGenerator(engine_of(model, name, slots=2))
    longest = Request(beginning, 300)
    number = batch.add(longest)
    while sum(event.token is not None for event in batch.step()) and len(batch.scheduler.running[number].tokens) < read:
        pass
    assert [tokens_of(batch, request) for request in newcomers] == expected  # beside it
    batch.cancel(number)
    assert [tokens_of(batch, request) for request in newcomers] == expected  # in its slot


@pytest.mark.parametrize("before", range(0, 40, 3))
def test_after_an_interrupted_burst_that_rolled_a_new_request_gets_its_own_text(
    before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, beginning = random_model(SMALL), tuple(random_tokens(SMALL, 12).tolist())
    newcomer = Request((*beginning, 7), 10)
    expected = tokens_of(engine_of(model, "numba"), newcomer)
    engine = engine_of(model, "numba")
    batch, decode = BatchGenerator(engine), engine.decode
    events = batch.follow([Request(beginning, 300)])
    for _ in range(1 + before):
        next(events)

    def interrupted(slots: list[int], steps: int) -> None:
        decode(slots, steps)  # Ctrl-C comes when the engine has written, but nobody knows yet
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(20):
            next(events)
    monkeypatch.setattr(engine, "decode", decode)
    assert not batch.busy and tokens_of(batch, newcomer) == expected


def test_several_tokens_at_once_do_not_roll() -> None:
    model, cache = random_model(SMALL), KVCache(SMALL)
    model(random_tokens(SMALL, 30)[None], cache)
    with pytest.raises(ConfigError, match=r"33 tokens do not fit .*block_size=32; .* token by token"):
        model(random_tokens(SMALL, 3)[None], cache)
    with pytest.raises(ConfigError, match=r"33 tokens do not fit the model's context of block_size=32"):
        model(random_tokens(SMALL, 33)[None])
    assert cache.length == 30


@torch.no_grad()
def test_a_cache_that_has_rolled_can_be_truncated_to_its_beginning_only() -> None:
    model, tokens_1T = random_model(SMALL), random_tokens(SMALL, 90)[None]
    cache = KVCache(SMALL)
    for piece in tokens_1T.split([32, *[1] * 58], dim=1):
        model(piece, cache)
    for length in (9, 32, 89):
        with pytest.raises(ConfigError, match=f"length={length} cannot be used: .* from 0 to the 8 tokens"):
            cache.truncate(length)
    cache.truncate(90)
    copied = cache.repeat(2)
    assert copied.rolled and torch.equal(copied.keys_LBHSE[:, 1], cache.keys_LBHSE[:, 0])
    cache.truncate(8)
    torch.testing.assert_close(model(tokens_1T[:, 8:32], cache), model(tokens_1T[:, :32])[:, 8:], rtol=1e-4, atol=1e-4)


def test_learned_positions_do_not_roll() -> None:
    assert GPTConfig(vocab_size=2).rolling_window == 0 and 0 < SMALL.rolling_window <= SMALL.block_size
