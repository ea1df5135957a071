"""Edits of a fresh model from outside do what they say."""

import pytest
import torch
from torch import Tensor, nn

from quill.experiments import edits
from quill.experiments.trained.rank import differing_share, streams
from quill.model.config import GPTConfig
from quill.model.gpt import GPT


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    made = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8, dropout=0.0, tie_weights=False))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made.eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))


def test_the_logits_of_the_bigram_depend_on_the_last_token_alone(model, tokens):
    edits.as_bigram(model)
    expected = model.head(model.token_embedding(tokens))
    assert torch.equal(model(tokens), expected)
    torch.testing.assert_close(model(tokens[:, -1:])[:, 0], model(tokens)[:, -1])


def test_the_positions_of_the_bigram_are_not_trained(model):
    edits.as_bigram(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"token_embedding.weight", "head.weight"}


def test_without_feed_forward_the_block_adds_attention_alone(model, tokens):
    block, x = model.blocks[0], model.token_embedding(tokens)
    expected = x + block.attention(block.attention_norm(x))
    edits.without_feed_forward(model)
    assert torch.equal(model.blocks[0](x), expected)
    assert not [name for name, _ in model.named_parameters() if "feed_forward" in name]


def test_without_attention_no_token_reaches_another_position(model, tokens):
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 11
    assert not torch.allclose(model(tokens)[:, 1:], model(other)[:, 1:])
    edits.without_attention(model)
    assert torch.equal(model(tokens)[:, 1:], model(other)[:, 1:])


def test_without_residuals_each_part_replaces_its_input(model, tokens):
    block, x = model.blocks[0], model.token_embedding(tokens)
    attended = block.attention(block.attention_norm(x))
    expected = block.feed_forward(block.feed_forward_norm(attended))
    edits.without_residuals(model)
    assert torch.equal(model.blocks[0](x), expected)


def test_one_head_alone_is_attention_then_the_output_layer(model, tokens):
    for edit in (edits.without_feed_forward, edits.without_residuals, edits.without_norms):
        edit(model)
    x = model.token_embedding(tokens) + model.position_embedding(torch.arange(8))
    for block in model.blocks:
        x = block.attention(x)
    assert torch.equal(model(tokens), model.head(x))


def test_post_norm_leaves_a_normalised_stream_after_every_block(model, tokens):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
    edits.with_norm(model, "post")
    for stream in streams(model, tokens)[1:]:
        assert torch.allclose(stream.mean(-1), torch.zeros(3, 8), atol=1e-5)
        assert torch.allclose(stream.var(-1, unbiased=False), torch.ones(3, 8), atol=1e-3)
    assert isinstance(model.final_norm, nn.Identity)


def test_a_model_without_norms_has_none(model):
    edits.with_norm(model, "none")
    assert not [module for module in model.modules() if isinstance(module, nn.LayerNorm)]


def test_pre_norm_is_the_model_itself(model, tokens):
    before = model(tokens)
    edits.with_norm(model, "pre")
    assert torch.equal(model(tokens), before)


def test_unit_scale_keeps_the_size_of_signals_and_is_decided_by_its_seed(model):
    edits.with_unit_scale(model, 3)
    weight = model.blocks[0].feed_forward.output.weight.clone()
    assert weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    edits.with_unit_scale(model, 4)
    assert not torch.equal(weight, model.blocks[0].feed_forward.output.weight)
    edits.with_unit_scale(model, 3)
    assert torch.equal(weight, model.blocks[0].feed_forward.output.weight)
    edits.with_depth_scaling(model)
    assert torch.allclose(weight / 2, model.blocks[0].feed_forward.output.weight)  # √(2 · 2 layers) = 2


def test_the_share_that_differs_is_zero_for_equal_positions_and_exact_for_known_ones():
    assert differing_share(torch.ones(1, 4, 3)) == 0
    assert differing_share(torch.zeros(1, 4, 3)) == 0
    x = torch.tensor([[[3.0], [1.0]]])  # mean 2, differences ±1
    assert differing_share(x) == pytest.approx((2 / 10) ** 0.5)
