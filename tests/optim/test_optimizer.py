"""The optimizer agrees with PyTorch's AdamW, gives each group its own rate, and does not import the compiler."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from recipes import MakeRecipe as Recipe

from quill.model.build import build_model
from quill.model.config import GPTConfig, ModernConfig
from quill.optim.optimizer import set_learning_rate
from quill.training.parameter_groups import build_optimizer

MODERN = ModernConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8, dropout=0.0)


def test_optimizer_steps_equal_those_of_pytorchs_adamw(recipe: Recipe) -> None:
    torch.manual_seed(0)
    ours, theirs = (build_model(GPTConfig(11, block_size=8, n_layer=1, n_head=2, n_embd=8)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    config = recipe(learning_rate=0.01, weight_decay=0.3).config
    optimizer = build_optimizer(ours, config)
    decayed = [p for p in theirs.parameters() if p.dim() >= 2]
    others = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        lr=0.01, betas=(config.beta1, config.beta2),
    )  # fmt: skip
    for _ in range(3):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


def test_muon_updates_the_matrices_in_the_blocks_and_adamw_the_rest(recipe: Recipe) -> None:
    config = recipe(optimizer="muon", learning_rate=0.004, muon_learning_rate=0.02, embedding_learning_rate=0.04).config
    model = build_model(MODERN)
    optimizer = build_optimizer(model, config)
    names = {group["kind"]: group["names"] for group in optimizer.param_groups}
    assert sorted(n for group in names.values() for n in group) == sorted(n for n, _ in model.named_parameters())
    assert names["muon"] == [n for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2]
    assert "token_embedding.weight" in names["embedding"] and "head.weight" in names["matrix"]
    set_learning_rate(optimizer, 0.002)  # half way down
    rates = {group["kind"]: group["lr"] for group in optimizer.param_groups}
    assert (rates["matrix"], rates["muon"], rates["embedding"]) == (0.002, 0.01, 0.02)


@pytest.mark.parametrize("n_kv_head", [None, 1], ids=["one key head for each query head", "one for two"])
def test_queries_keys_and_values_are_orthogonalized_separately(recipe: Recipe, n_kv_head: int | None) -> None:
    model = build_model(replace(MODERN, n_kv_head=n_kv_head))
    name = "blocks.0.attention.query_key_value.weight"
    weight = model.get_parameter(name)
    before, rows = weight.detach().clone(), [8, 4 * (n_kv_head or 2), 4 * (n_kv_head or 2)]
    scales = (1, 100, 0.01)
    weight.grad = torch.cat([scale * torch.randn(count, 8) for scale, count in zip(scales, rows, strict=True)])
    build_optimizer(model, recipe(optimizer="muon", weight_decay=0.0).config).step()
    lengths = [moved.square().sum(-1).mean().item() for moved in (weight.detach() - before).split(rows)]
    assert max(lengths) < 4 * min(lengths), "however different their gradients are"


def test_an_optimizer_step_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch\n"
        "from quill.model.config import ModernConfig\nfrom quill.model.build import build_model\n"
        "from quill.training.config import TrainConfig\nfrom quill.training.parameter_groups import build_optimizer\n"
        "model = build_model(ModernConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4))\n"
        "optimizer = build_optimizer(model, TrainConfig(optimizer='muon'))\n"
        "model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()\n"
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
        "optimizer.step(); optimizer.zero_grad()\n"
        "assert 'torch._dynamo' not in sys.modules, 'a second of start-up'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
