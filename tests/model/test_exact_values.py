"""Values of the two models: sizes, initial weights and formulas, some computed by hand.

An edit of a model changes these values, and the test of each one fails. test_properties.py says whether the model is
still a GPT.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from quill.model.build import Model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.model.gpt import GPT, Attention, Block, causal_mask
from quill.model.modern import Block as ModernBlock
from quill.model.modern import ModernGPT, NGramEmbedding, Rotary

CLASSIC = GPTConfig(vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0)
MODERN = ModernConfig(
    vocab_size=11, block_size=16, n_layer=3, n_head=2, n_embd=8, dropout=0.0, ngram_rows=97, ngram_dropout=0.0
)
RandomModel = Callable[[ModelConfig], Model]
RandomTokens = Callable[..., Tensor]


def first_block(model: Model) -> Block | ModernBlock:
    block = model.blocks[0]
    assert isinstance(block, Block | ModernBlock)
    return block


@pytest.mark.parametrize("cached", [0, 1, 6])
def test_fused_attention_equals_the_formula(config: ModelConfig, cached: int, random_model: RandomModel) -> None:
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


def test_attention_of_two_tokens_computed_by_hand() -> None:
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


def test_the_mask_lets_the_last_tokens_attend_to_earlier_ones_only() -> None:
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_residual_projections_start_smaller_with_depth() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=65, n_layer=8, n_embd=192))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
            continue
        expected = 0.02 / 4 if name.endswith(("attention.output.weight", "feed_forward.output.weight")) else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_the_full_size_model_has_10_65_million_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=65))
    assert model.count_parameters(positions=False) == 10_646_784
    assert model.count_parameters() == 10_646_784 + 256 * 384


def test_a_tied_head_shares_the_embedding_matrix_and_an_untied_one_does_not() -> None:
    with torch.device("meta"):
        tied, untied = GPT(GPTConfig(vocab_size=65)), GPT(GPTConfig(vocab_size=65, tie_weights=False))
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.count_parameters() - tied.count_parameters() == 65 * 384


@pytest.mark.parametrize("small", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_dropout_is_on_embeddings_attention_weights_and_both_branches(
    small: ModelConfig, random_model: RandomModel
) -> None:
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


def test_a_rotation_computed_by_hand() -> None:
    # Of two pairs the first turns by one radian a token, the second by 1/1024: at position 3, (1, 2) and (3, 4).
    turned = Rotary(4, 4)(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), start=3).flatten()
    c, s, slow_c, slow_s = math.cos(3), math.sin(3), math.cos(3 / 1024), math.sin(3 / 1024)
    expected = [c - 2 * s, 2 * c + s, 3 * slow_c - 4 * slow_s, 4 * slow_c + 3 * slow_s]
    assert turned.tolist() == pytest.approx(expected, rel=1e-5)


def test_rows_of_ngrams_computed_by_hand() -> None:
    # Three tokens, bigrams and trigrams, each with its own row: 4² and 4³ of them; a missing token counts as id 3.
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


def test_modern_logits_stay_below_their_cap(random_model: RandomModel, random_tokens: RandomTokens) -> None:
    model = random_model(replace(MODERN, logit_softcap=2.0))
    assert model(random_tokens(MODERN)).abs().max() < 2.0


def test_the_blocks_of_a_new_modern_model_add_nothing() -> None:
    model = ModernGPT(MODERN)
    written = [p for name, p in model.named_parameters() if name.endswith("output.weight") or name == "head.weight"]
    assert len(written) == 2 * MODERN.n_layer + 1 and all((p == 0).all() for p in written)
    assert all((p == 0).all() for p in model.ngram_embedding.parameters())
