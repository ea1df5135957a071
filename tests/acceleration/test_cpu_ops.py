"""Fused operations for CPUs give the logits and gradients of the plain model."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from quill.acceleration.cpu_attention import use_cpu_attention
from quill.acceleration.cpu_dropout import use_fast_dropout
from quill.acceleration.cpu_ops import FusedRMSNorm, use_fused_cpu_ops
from quill.model.build import build_model
from quill.model.cache import KVCache
from quill.model.config import ModernConfig
from quill.model.modern import RMSNorm

CONFIG = ModernConfig(
    vocab_size=11, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, dropout=0.0, ngram_rows=97,
    ngram_dropout=0.0,
)  # fmt: skip


def pair(config: ModernConfig):
    """Return a model with random weights everywhere, and a copy with fused operations and attention."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    fused = copy.deepcopy(model)
    use_fused_cpu_ops(fused)
    use_cpu_attention(fused)
    return model, fused


def test_fused_operations_give_the_logits_and_gradients_of_the_model() -> None:
    model, fused = pair(CONFIG)
    tokens_BT = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(0))
    ours, theirs = fused(tokens_BT), model(tokens_BT)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    weights_BTV = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights_BTV).sum().backward()
    (theirs * weights_BTV).sum().backward()
    for (name, mine), other in zip(fused.named_parameters(), model.parameters(), strict=True):
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
    found = FusedRMSNorm()(x)
    found.backward(gradient)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-5 * exact.grad.abs().max().item())


def test_fused_operations_give_the_logits_of_the_model_with_a_cache() -> None:
    model, fused = pair(CONFIG)
    tokens_BT = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(0))
    cache = KVCache(CONFIG, 2)
    pieces = torch.cat([fused(piece, cache) for piece in tokens_BT.split([5, 1, 7, 3], dim=1)], dim=1)
    torch.testing.assert_close(pieces, model(tokens_BT), rtol=1e-4, atol=1e-5)
    plain = KVCache(CONFIG, 2)
    model(tokens_BT, plain)
    for token_BT in tokens_BT.split(1, dim=1):  # past the context
        torch.testing.assert_close(fused(token_BT, cache), model(token_BT, plain), rtol=1e-4, atol=1e-5)


def test_fused_operations_in_bfloat16_stay_close_to_the_model() -> None:
    model, fused = pair(CONFIG)
    tokens_BT = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = fused(tokens_BT), model(tokens_BT)
    assert (ours.float() - theirs.float()).abs().max() < 0.1 * theirs.float().std()


def test_the_order_in_which_replacements_are_applied_changes_nothing() -> None:
    steps = (use_fused_cpu_ops, use_cpu_attention, use_fast_dropout)
    tokens_BT = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(0))
    results, shown = [], set()
    for order in itertools.permutations(steps):
        torch.manual_seed(0)
        model = build_model(replace(CONFIG, dropout=0.5, ngram_dropout=0.3))
        torch.nn.init.normal_(model.head.weight)
        for apply in order:
            apply(model)
        assert torch.equal(model.eval()(tokens_BT), model(tokens_BT))
        torch.manual_seed(1)
        results.append(model.train()(tokens_BT))
        assert not torch.equal(results[-1], model(tokens_BT)), "dropout is active"
        shown.add(repr(model))
    assert all(torch.equal(logits_BTV, results[0]) for logits_BTV in results) and len(shown) == 1
