"""What a CPU computes in fewer passes is what the model says: the same scores, the same gradients."""

import copy
from dataclasses import replace

import pytest
import torch

from quill.acceleration.checkpointing import forget_activations
from quill.acceleration.cpu_dropout import lighten_dropout
from quill.acceleration.cpu_ops import QuickRMSNorm, quicken
from quill.model.build import build_model
from quill.model.cache import KVCache
from quill.model.config import GPTConfig, ModernConfig
from quill.model.gpt import GPT
from quill.model.modern import RMSNorm
from quill.planning.memory_trace import TensorCounter

CONFIG = ModernConfig(
    vocab_size=11, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, dropout=0.0, ngram_rows=97,
    ngram_dropout=0.0,
)  # fmt: skip


def pair(config: ModernConfig):
    """Return a model in which every path matters, and its quick double."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    double = copy.deepcopy(model)
    quicken(double)
    return model, double


def test_the_same_scores_and_gradients() -> None:
    model, double = pair(CONFIG)
    tokens_BT = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(0))
    ours, theirs = double(tokens_BT), model(tokens_BT)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    weights_BTV = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights_BTV).sum().backward()
    (theirs * weights_BTV).sum().backward()
    for (name, mine), other in zip(double.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("rms", [1.0, 0.01, 0.001, 0.0])
def test_the_norm_of_small_activations_and_its_gradient_are_those_of_the_model(rms: float) -> None:
    """D1: ε is added to the mean square, not to its root. At rms 0.001 that is a factor of √2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 32, generator=generator)
    x *= rms / x.square().mean(-1, keepdim=True).sqrt()
    gradient = torch.randn(7, 32, generator=generator)
    exact = x.double().requires_grad_()
    expected = RMSNorm()(exact)
    expected.backward(gradient.double())
    x.requires_grad_()
    found = QuickRMSNorm.apply(x)
    found.backward(gradient)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-5 * exact.grad.abs().max().item())


def test_the_same_scores_with_a_cache() -> None:
    model, double = pair(CONFIG)
    tokens_BT = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(0))
    cache = KVCache(CONFIG, 2)
    pieces = torch.cat([double(piece, cache) for piece in tokens_BT.split([5, 1, 7, 3], dim=1)], dim=1)
    torch.testing.assert_close(pieces, model(tokens_BT), rtol=1e-4, atol=1e-5)
    plain = KVCache(CONFIG, 2)
    model(tokens_BT, plain)
    for token_BT in tokens_BT.split(1, dim=1):  # past the context
        torch.testing.assert_close(double(token_BT, cache), model(token_BT, plain), rtol=1e-4, atol=1e-5)


def test_half_precision_stays_near() -> None:
    model, double = pair(CONFIG)
    tokens_BT = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = double(tokens_BT), model(tokens_BT)
    assert (ours.float() - theirs.float()).abs().max() < 0.1 * theirs.float().std()


@pytest.mark.parametrize(
    "order", [(lighten_dropout, quicken), (quicken, lighten_dropout)], ids=["quick last", "quick first"]
)
def test_dropout_and_quick_operations_go_together(order) -> None:
    model, _ = pair(replace(CONFIG, dropout=0.5))
    for apply in order:
        apply(model)
    tokens_BT = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval()(tokens_BT), model(tokens_BT))
    model.train()
    assert not torch.equal(model(tokens_BT), model(tokens_BT))


def test_activations_computed_again_give_the_same_gradients_from_less_memory() -> None:
    gradients, held = [], []
    tokens_BT = torch.arange(64).view(4, 16) % 11
    for apply in (lambda model: None, forget_activations):
        torch.manual_seed(0)
        model = GPT(GPTConfig(11, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.3))
        apply(model)
        with TensorCounter() as counter:
            weights = counter.live
            loss = model(tokens_BT).square().sum()
            held.append(counter.live - weights)
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    hidden = 2 * tokens_BT.numel() * 4 * 16 * 4  # layers, tokens, width, bytes
    assert held[0] - held[1] == hidden
