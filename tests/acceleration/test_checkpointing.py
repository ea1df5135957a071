"""Recomputed activations give the same gradients from less memory."""

import copy

import pytest
import torch

from quill.acceleration.checkpointing import CheckpointedBlock, checkpoint_blocks, recompute_activations
from quill.model.build import build_model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.model.gpt import GPT
from quill.model.modes import evaluation_mode
from quill.planning.memory_trace import TensorCounter

CLASSIC = GPTConfig(11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
MODERN = ModernConfig(11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
each_model = pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
TOKENS_BT = torch.arange(64).view(4, 16) % 11


def test_recomputed_activations_give_the_same_gradients_from_less_memory() -> None:
    gradients, stored = [], []
    for apply in (lambda model: None, recompute_activations):
        torch.manual_seed(0)
        model = GPT(CLASSIC)
        apply(model)
        with TensorCounter() as counter:
            weights = counter.live
            loss = model(TOKENS_BT).square().sum()
            stored.append(counter.live - weights)
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    hidden = 2 * TOKENS_BT.numel() * 4 * 16 * 4  # layers, tokens, width, bytes
    assert stored[0] - stored[1] == hidden


@each_model
def test_a_checkpointed_block_shares_parameters_submodules_and_mode_with_the_block(config: ModelConfig) -> None:
    model = build_model(config)
    plain = copy.deepcopy(model)
    checkpoint_blocks(model)
    checkpoint_blocks(model)  # a second time changes nothing
    block = model.blocks[0]
    assert isinstance(block, CheckpointedBlock) and not isinstance(block.block, CheckpointedBlock)
    assert "(0-1): 2 x CheckpointedBlock(" in repr(model)
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names and list(model.state_dict()) == list(
        plain.state_dict()
    )
    block.attention = torch.nn.Identity()
    assert block.block.attention is block.attention
    block = model.blocks[1]
    assert isinstance(block, CheckpointedBlock)
    with evaluation_mode(model):
        block(torch.zeros(1, 2, 16))
        assert not block.block.training
    block(torch.zeros(1, 2, 16))
    assert block.block.training


@each_model
def test_a_checkpointed_model_reads_a_cache(config: ModelConfig) -> None:
    model = build_model(config).eval()
    expected = model(TOKENS_BT[:1])
    checkpoint_blocks(model)
    cache = KVCache(config, 1)
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in TOKENS_BT[:1].split([5, 1, 10], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


@each_model
def test_a_checkpointed_model_can_be_traced_by_a_compiler(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config).eval()
    expected = model(TOKENS_BT)
    checkpoint_blocks(model)
    torch.testing.assert_close(torch.compile(model, backend="eager")(TOKENS_BT), expected)
