"""The laws that every model of ours obeys, whatever is inside it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quill.errors import ConfigError
from quill.model.build import Model, build_model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.model.gpt import GPT, Attention, Block, causal_mask
from quill.model.modern import Block as ModernBlock
from quill.model.modern import ModernGPT, NGramEmbedding, Rotary

SMALL = GPTConfig(vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0)
MODERN = ModernConfig(
    vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0, ngram_rows=97, ngram_dropout=0.0
)
VARIANTS = [
    pytest.param(SMALL, id="founding"),
    pytest.param(replace(SMALL, bias=True), id="bias"),
    pytest.param(replace(SMALL, tie_weights=False), id="untied"),
    pytest.param(replace(SMALL, activation="relu", bias=True, tie_weights=False), id="lecture"),
    pytest.param(replace(SMALL, n_head=1, n_layer=1), id="smallest"),
    pytest.param(MODERN, id="modern"),
    pytest.param(replace(MODERN, n_kv_head=1, ngram=2), id="modern, shared keys"),
    pytest.param(replace(MODERN, logit_softcap=0.0, n_head=1, n_layer=1, ngram=1), id="modern, smallest"),
]
each_variant = pytest.mark.parametrize("config", VARIANTS)


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """Return a model whose weights are large enough for every path to matter."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def first_block(model: Model) -> Block | ModernBlock:
    block = model.blocks[0]
    assert isinstance(block, Block | ModernBlock)
    return block


def random_tokens(config: ModelConfig, batch_size: int = 2, length: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (batch_size, length or config.block_size), generator=generator)


@each_variant
def test_changing_a_token_changes_no_earlier_logits(config: ModelConfig) -> None:
    model, tokens_BT = random_model(config), random_tokens(config)
    before_BTV = model(tokens_BT)
    for t in range(config.block_size):
        changed_BT = tokens_BT.clone()
        changed_BT[:, t] = (changed_BT[:, t] + 1) % config.vocab_size
        after_BTV = model(changed_BT)
        assert torch.equal(before_BTV[:, :t], after_BTV[:, :t])
        assert (before_BTV[:, t:] != after_BTV[:, t:]).any(dim=-1).all(), "a token reaches itself and all that follow"


@each_variant
@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 11], [1, 7, 1, 3, 4], [15, 1]], ids=str)
def test_cached_logits_equal_uncached_ones(config: ModelConfig, pieces: list[int]) -> None:
    model, tokens_BT = random_model(config), random_tokens(config)
    cache = KVCache(config, batch_size=2)
    cached = torch.cat([model(piece_BT, cache) for piece_BT in tokens_BT.split(pieces, dim=1)], dim=1)
    assert cache.length == 16
    torch.testing.assert_close(cached, model(tokens_BT), rtol=1e-4, atol=1e-4)


@each_variant
def test_a_truncated_cache_is_as_if_the_rest_had_never_been_seen(config: ModelConfig) -> None:
    model, tokens_BT = random_model(config), random_tokens(config)
    cache = KVCache(config, batch_size=2)
    model(random_tokens(config).flip(1), cache)
    cache.truncate(0)
    model(tokens_BT[:, :9], cache)
    model(tokens_BT[:, 2:6], cache)
    cache.truncate(9)
    torch.testing.assert_close(model(tokens_BT[:, 9:], cache), model(tokens_BT)[:, 9:], rtol=1e-4, atol=1e-4)


def test_a_cache_holds_no_more_than_the_context() -> None:
    config = SMALL
    model, cache = random_model(config), KVCache(config)
    model(random_tokens(config, 1), cache)
    with pytest.raises(ConfigError, match=r"17 tokens do not fit .*block_size=16"):
        model(random_tokens(config, 1, 1), cache)
    with pytest.raises(ConfigError, match="length=17 cannot be used"):
        cache.truncate(17)


def test_two_caches_of_one_model_know_nothing_of_each_other() -> None:
    config = SMALL
    model, tokens_BT = random_model(config), random_tokens(config)
    one, other = KVCache(config), KVCache(config)
    model(tokens_BT[:1, :8], one)
    model(tokens_BT[1:, :8], other)
    torch.testing.assert_close(model(tokens_BT[:1, 8:], one), model(tokens_BT)[:1, 8:], rtol=1e-4, atol=1e-4)


@each_variant
@pytest.mark.parametrize("cached", [0, 1, 6])
def test_fused_attention_equals_the_formula(config: ModelConfig, cached: int) -> None:
    attention = first_block(random_model(config)).attention
    x_BTD = torch.randn(2, 12, config.n_embd, generator=torch.Generator().manual_seed(2))
    fused_cache, shown_cache = (KVCache(config, 2), KVCache(config, 2)) if cached else (None, None)
    if fused_cache and shown_cache:
        attention(x_BTD[:, :cached], fused_cache)
        attention(x_BTD[:, :cached], shown_cache)
        fused_cache.advance(cached)
        shown_cache.advance(cached)
    fused_BTD = attention(x_BTD[:, cached:], fused_cache)
    weights_BHTS = attention.attention_weights(x_BTD[:, cached:], shown_cache)
    v_BHSE = attention.project(x_BTD)[2]
    by_formula_BTD = attention.output((weights_BHTS @ v_BHSE).transpose(1, 2).flatten(2))
    torch.testing.assert_close(fused_BTD, by_formula_BTD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights_BHTS.sum(-1), torch.ones(weights_BHTS.shape[:-1]))


def test_attention_of_two_tokens_worked_out_by_hand() -> None:
    # One head of size 1. Queries are 2x, keys are x, values are 3x, and the output is left as it is; x is (1, 2).
    # Scores QKᵀ/√1: the second token scores the first with 4·1 = 4 and itself with 4·2 = 8.
    attention = Attention(GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=1, dropout=0.0), layer=0)
    with torch.no_grad():
        attention.query_key_value.weight.copy_(torch.tensor([[2.0], [1.0], [3.0]]))
        attention.output.weight.fill_(1.0)
    x_BTD = torch.tensor([[[1.0], [2.0]]])
    to_first, to_itself = 1 / (1 + math.exp(4)), 1 / (1 + math.exp(-4))
    expected_TS = torch.tensor([[1.0, 0.0], [to_first, to_itself]])
    torch.testing.assert_close(attention.attention_weights(x_BTD)[0, 0], expected_TS)
    expected_T = torch.tensor([3.0, 3.0 * to_first + 6.0 * to_itself])
    torch.testing.assert_close(attention(x_BTD)[0, :, 0], expected_T)


def test_the_mask_lets_the_last_tokens_look_back_only() -> None:
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


@each_variant
def test_the_first_loss_is_that_of_guessing(config: ModelConfig) -> None:
    torch.manual_seed(0)
    config = replace(config, vocab_size=65, n_embd=64, block_size=64)
    tokens_BT = random_tokens(config, 16, 65 - 1)
    logits_BTV = build_model(config)(tokens_BT[:, :-1])
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.05


def test_residual_projections_start_smaller_with_depth() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=65, n_layer=8, n_embd=192))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
            continue
        expected = 0.02 / 4 if name.endswith(("attention.output.weight", "feed_forward.output.weight")) else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


@each_variant
def test_one_batch_can_be_learnt_by_heart(config: ModelConfig) -> None:
    torch.manual_seed(0)
    config = replace(config, n_embd=32, n_layer=max(2, config.n_layer))
    model, tokens_BT = build_model(config), random_tokens(config, 4)
    tokens_BT[:, 0] = torch.arange(4)  # only their beginnings tell the texts apart: with them, zero is within reach
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss = torch.tensor(math.inf)
    for _ in range(200):
        loss = F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_the_founding_model_has_10_65_million_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=65))
    assert model.count_parameters(positions=False) == 10_646_784
    assert model.count_parameters() == 10_646_784 + 256 * 384


def test_a_tied_head_is_one_matrix_and_an_untied_one_its_own() -> None:
    with torch.device("meta"):
        tied, untied = GPT(GPTConfig(vocab_size=65)), GPT(GPTConfig(vocab_size=65, tie_weights=False))
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.count_parameters() - tied.count_parameters() == 65 * 384


@pytest.mark.parametrize("small", [SMALL, MODERN], ids=["classic", "modern"])
def test_dropout_acts_in_training_only(small: ModelConfig) -> None:
    config = replace(small, dropout=0.5)
    model, tokens_BT = random_model(config), random_tokens(config)
    assert torch.equal(model(tokens_BT), model(tokens_BT))
    model.train()
    assert not torch.equal(model(tokens_BT), model(tokens_BT))


@pytest.mark.parametrize("small", [SMALL, MODERN], ids=["classic", "modern"])
def test_dropout_is_on_embeddings_attention_weights_and_both_branches(small: ModelConfig) -> None:
    config = replace(small, dropout=0.5, n_layer=1)
    model = random_model(config).train()
    x_BTD = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(3))
    block = first_block(model)
    assert (block.feed_forward(x_BTD) == 0).any() and (block.attention(x_BTD) == 0).any()
    block.attention.output_dropout.p = 0.0
    assert not torch.equal(block.attention(x_BTD), block.attention(x_BTD)), "attention weights are dropped too"
    assert (model.embedding_dropout(x_BTD) == 0).any()


def test_scores_of_rotated_vectors_depend_on_the_distance_alone() -> None:
    q_E, k_E = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    rotary: nn.Module = Rotary(12, 8)
    turned_q, turned_k = [rotary(x_E.expand(1, 12, 1, 8), start=0)[0, :, 0] for x_E in (q_E, k_E)]
    scores_TS = turned_q @ turned_k.T
    for distance in range(-11, 12):
        along = scores_TS.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned_q.norm(dim=-1), q_E.norm().expand(12))
    assert scores_TS[:, 0].std() > 0.1, "and they do depend on it"


def test_a_rotation_worked_out_by_hand() -> None:
    # Of two pairs the first turns by one radian a token, the second by 1/1024: at position 3, (1, 2) and (3, 4).
    turned = Rotary(4, 4)(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), start=3).flatten()
    c, s, slow_c, slow_s = math.cos(3), math.sin(3), math.cos(3 / 1024), math.sin(3 / 1024)
    expected = [c - 2 * s, 2 * c + s, 3 * slow_c - 4 * slow_s, 4 * slow_c + 3 * slow_s]
    assert turned.tolist() == pytest.approx(expected, rel=1e-5)


def test_runs_of_tokens_have_rows_of_their_own_worked_out_by_hand() -> None:
    # Three tokens, pairs and triples, all rows told apart: 4² and 4³ of them, a missing token counting as number 3.
    config = replace(MODERN, vocab_size=3, ngram=3, ngram_rows=64, n_embd=2, n_head=1)
    table = NGramEmbedding(config)
    with torch.no_grad():
        for number, weight in enumerate(table.parameters()):
            weight.copy_(torch.arange(len(weight))[:, None].expand(-1, 2) * 100.0**number)
    rows = table(torch.zeros(1, 3, 2), torch.tensor([[2, 0, 1]]))[0, :, 0].tolist()
    pairs, triples = [2 + 4 * 3, 0 + 4 * 2, 1 + 4 * 0], [2 + 4 * 3 + 16 * 3, 0 + 4 * 2 + 16 * 3, 1 + 4 * 0 + 16 * 2]
    assert rows == [pair + 100 * triple for pair, triple in zip(pairs, triples, strict=True)]
    assert [len(weight) for weight in NGramEmbedding(replace(config, ngram_rows=20)).parameters()] == [16, 20]


def test_shared_keys_and_values_make_the_cache_smaller() -> None:
    whole, shared = KVCache(replace(MODERN, n_head=4)), KVCache(replace(MODERN, n_head=4, n_kv_head=1))
    assert shared.keys_LBHSE.numel() * 4 == whole.keys_LBHSE.numel()


def test_modern_logits_stay_below_their_cap() -> None:
    model = random_model(replace(MODERN, logit_softcap=2.0))
    assert model(random_tokens(MODERN)).abs().max() < 2.0


def test_a_new_modern_model_only_copies_embeddings() -> None:
    model = ModernGPT(MODERN)
    written = [p for name, p in model.named_parameters() if name.endswith("output.weight") or name == "head.weight"]
    assert len(written) == 2 * MODERN.n_layer + 1 and all((p == 0).all() for p in written)
    assert all((p == 0).all() for p in model.ngram_embedding.parameters())
