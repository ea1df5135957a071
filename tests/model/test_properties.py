"""Properties of every GPT: it is causal, gives the same logits with a cache, and can learn.

These tests also hold for custom blocks. The values of the two models here are checked in test_exact_values.py.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from quill.errors import ConfigError
from quill.model.build import Model, build_model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModelConfig, ModernConfig

CLASSIC = GPTConfig(vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0)
MODERN = ModernConfig(
    vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0, ngram_rows=97, ngram_dropout=0.0
)
RandomModel = Callable[[ModelConfig], Model]
RandomTokens = Callable[..., Tensor]


def test_changing_a_token_changes_no_earlier_logits(
    config: ModelConfig, random_model: RandomModel, random_tokens: RandomTokens
) -> None:
    model, tokens_BT = random_model(config), random_tokens(config)
    before_BTV = model(tokens_BT)
    for t in range(config.block_size):
        changed_BT = tokens_BT.clone()
        changed_BT[:, t] = (changed_BT[:, t] + 1) % config.vocab_size
        after_BTV = model(changed_BT)
        assert torch.equal(before_BTV[:, :t], after_BTV[:, :t])
        assert (before_BTV[:, t:] != after_BTV[:, t:]).any(dim=-1).all(), (
            "a token affects its own logits and all later ones"
        )


@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 11], [1, 7, 1, 3, 4], [15, 1]], ids=str)
def test_cached_logits_equal_uncached_ones(
    config: ModelConfig, pieces: list[int], random_model: RandomModel, random_tokens: RandomTokens
) -> None:
    model, tokens_BT = random_model(config), random_tokens(config)
    cache = KVCache(config, batch_size=2)
    cached = torch.cat([model(piece_BT, cache) for piece_BT in tokens_BT.split(pieces, dim=1)], dim=1)
    assert cache.length == 16
    torch.testing.assert_close(cached, model(tokens_BT), rtol=1e-4, atol=1e-4)


def test_a_truncated_cache_equals_one_that_never_read_the_rest(
    config: ModelConfig, random_model: RandomModel, random_tokens: RandomTokens
) -> None:
    model, tokens_BT = random_model(config), random_tokens(config)
    cache = KVCache(config, batch_size=2)
    model(random_tokens(config).flip(1), cache)
    cache.truncate(0)
    model(tokens_BT[:, :9], cache)
    model(tokens_BT[:, 2:6], cache)
    cache.truncate(9)
    torch.testing.assert_close(model(tokens_BT[:, 9:], cache), model(tokens_BT)[:, 9:], rtol=1e-4, atol=1e-4)


def test_a_cache_holds_no_more_than_the_context(random_model: RandomModel, random_tokens: RandomTokens) -> None:
    config = CLASSIC
    model, cache = random_model(config), KVCache(config)
    model(random_tokens(config, 1), cache)
    with pytest.raises(ConfigError, match=r"17 tokens do not fit .*block_size=16"):
        model(random_tokens(config, 1, 1), cache)
    with pytest.raises(ConfigError, match="length=17 cannot be used"):
        cache.truncate(17)


def test_two_caches_of_one_model_are_independent(random_model: RandomModel, random_tokens: RandomTokens) -> None:
    config = CLASSIC
    model, tokens_BT = random_model(config), random_tokens(config)
    one, other = KVCache(config), KVCache(config)
    model(tokens_BT[:1, :8], one)
    model(tokens_BT[1:, :8], other)
    torch.testing.assert_close(model(tokens_BT[:1, 8:], one), model(tokens_BT)[:1, 8:], rtol=1e-4, atol=1e-4)


def test_the_initial_loss_is_that_of_guessing(config: ModelConfig, random_tokens: RandomTokens) -> None:
    torch.manual_seed(0)
    config = replace(config, vocab_size=65, n_embd=64, block_size=64)
    tokens_BT = random_tokens(config, 16, 65 - 1)
    logits_BTV = build_model(config)(tokens_BT[:, :-1])
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.05


def test_one_batch_can_be_overfitted(config: ModelConfig, random_tokens: RandomTokens) -> None:
    torch.manual_seed(0)
    config = replace(config, n_embd=32, n_layer=max(2, config.n_layer))
    model, tokens_BT = build_model(config), random_tokens(config, 4)
    tokens_BT[:, 0] = torch.arange(4)  # different first tokens, so that the loss can reach zero
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = torch.tensor(math.inf)
    for _ in range(200):
        loss = F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


@pytest.mark.parametrize("small", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_dropout_acts_in_training_only(
    small: ModelConfig, random_model: RandomModel, random_tokens: RandomTokens
) -> None:
    config = replace(small, dropout=0.5)
    model, tokens_BT = random_model(config), random_tokens(config)
    assert torch.equal(model(tokens_BT), model(tokens_BT))
    model.train()
    assert not torch.equal(model(tokens_BT), model(tokens_BT))


def test_targets_in_place_of_the_cache_are_refused_with_advice(
    config: ModelConfig, random_model: RandomModel, random_tokens: RandomTokens
) -> None:  # U21
    model, tokens_BT = random_model(config), random_tokens(config)
    with pytest.raises(ConfigError, match=r"is a KVCache, not a Tensor: .*cross_entropy\(model\(x\), y\)"):
        model(tokens_BT, tokens_BT)
