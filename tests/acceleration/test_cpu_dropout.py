"""Dropout for CPUs: the same expectation and gradients as PyTorch's, with other draws."""

import copy
import math

import pytest
import torch
from torch import Tensor

from quill.acceleration import cpu_attention
from quill.acceleration.checkpointing import checkpoint_blocks
from quill.acceleration.cpu_attention import attend_with_dropout, use_cpu_attention
from quill.acceleration.cpu_dropout import drop, use_fast_dropout
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.model.gpt import Attention
from quill.model.modern import Attention as ModernAttention

CLASSIC = GPTConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
MODERN = ModernConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
each_model = pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])


def random_model(config: ModelConfig) -> Model:
    """Return a model in which every path matters."""
    torch.manual_seed(0)
    model = build_model(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def with_fast_dropout(model: Model) -> Model:
    """Apply everything that draws masks of its own."""
    use_cpu_attention(model)
    use_fast_dropout(model)
    return model


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_dropout_drops_a_share_of_p_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    y = drop(torch.ones(1_000_003), p)
    # The standard deviation of the share over a million draws is at most 0.0005.
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-3)


def test_neighbouring_elements_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (drop(torch.ones(400_000), 0.2) > 0).float() - 0.8
    for distance in (1, 2, 3, 4, 5, 8, 64):
        correlation = (kept[:-distance] * kept[distance:]).mean().item() / 0.16
        assert abs(correlation) < 0.01, distance


def test_the_gradient_of_dropout_is_that_of_the_kept_elements() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, requires_grad=True)
    y = drop(x, 0.4)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, y)


@pytest.mark.parametrize(("p", "tile", "most"), [(0.4, 16, 2**18), (0.0, 16, 1), (0.0, 7, 2**18), (0.0, 7, 1)])
def test_attention_computed_in_tiles_equals_the_formula(
    p: float, tile: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "QUERIES", tile)
    monkeypatch.setattr(cpu_attention, "WEIGHTS", most)  # 1: each window has tiles of its own
    torch.manual_seed(0)
    qkv_BT3HE = torch.randn(2, 16, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    g_BHTE = torch.randn(2, 2, 16, 8, dtype=torch.float64)

    def formula(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, scale: float, p: float) -> Tensor:
        future_TT = torch.ones(16, 16, dtype=torch.bool).triu(1)
        return drop((q_BHTE @ k_BHTE.mT * scale).masked_fill(future_TT, -math.inf).softmax(-1), p) @ v_BHTE

    results = []
    for attend in (formula, attend_with_dropout):
        torch.manual_seed(1)  # the same masks, where one tile holds all
        qkv_BT3HE.grad = None
        q_BHTE, k_BHTE, v_BHTE = qkv_BT3HE.permute(2, 0, 3, 1, 4)
        heads_BHTE = attend(q_BHTE, k_BHTE, v_BHTE, 0.3, p)
        heads_BHTE.backward(g_BHTE)
        results.append((heads_BHTE.detach(), qkv_BT3HE.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("tile", [5, pytest.param(16, marks=pytest.mark.long)])
def test_gradients_of_attention_with_dropout_agree_with_finite_differences(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "QUERIES", tile)

    def attend(q_BHTE, k_BHTE, v_BHTE):
        torch.manual_seed(1)
        return attend_with_dropout(q_BHTE, k_BHTE, v_BHTE, 0.5, 0.3)

    torch.manual_seed(0)
    assert torch.autograd.gradcheck(attend, torch.randn(3, 2, 2, 11, 2, dtype=torch.float64).requires_grad_().unbind())


@each_model
def test_fast_dropout_changes_no_logits_in_evaluation_or_without_dropout(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "SHORT", 0)  # attention of short windows agrees up to rounding only
    plain = random_model(config)
    fast = with_fast_dropout(copy.deepcopy(plain))
    tokens_BT = torch.randint(11, (2, 16))
    assert torch.equal(plain.eval()(tokens_BT), fast.eval()(tokens_BT))
    for model in (plain, fast):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, Attention | ModernAttention):
                module.dropout = 0.0
    torch.testing.assert_close(plain(tokens_BT), fast(tokens_BT))


@each_model
def test_the_mean_of_many_passes_with_fast_dropout_equals_that_of_plain_dropout(config: ModelConfig) -> None:
    plain = random_model(config)
    fast = with_fast_dropout(copy.deepcopy(plain))
    tokens_BT = torch.randint(11, (1, 16)).expand(2000, -1)
    with torch.no_grad():
        ours, theirs = fast(tokens_BT), plain(tokens_BT)
    spread = theirs.std(0) / 2000**0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 6 * spread).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.15, atol=0.0)


@each_model
def test_gradient_checkpointing_recomputes_the_same_masks(config: ModelConfig) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = with_fast_dropout(random_model(config))
        if checkpointed:
            checkpoint_blocks(model)
        model(torch.arange(11)[None]).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
