"""Row-wise Adam: by the formula, the same for sparse and dense gradients, and only for rows that a step used."""

import copy

import pytest
import torch
from recipes import MakeRecipe as Recipe
from torch.nn import functional as F

from quill.acceleration.sparse_embedding import use_sparse_gradients
from quill.model.config import ModernConfig
from quill.model.modern import ModernGPT
from quill.optim.rowwise_adam import rowwise_adam_update
from quill.training.parameter_groups import build_optimizer
from quill.training.step import clip_gradients

CONFIG = ModernConfig(
    vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8, dropout=0.0, ngram=3, ngram_rows=97, ngram_dropout=0.0
)


def test_used_rows_are_updated_by_the_formula_and_others_stay() -> None:
    torch.manual_seed(0)
    lr, decay, beta = 0.1, 0.5, 0.9
    table, state = torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    expected, second_moments, counts = table.clone(), [0.0] * 5, [0] * 5
    for used in ([1, 3], [3], [0, 3, 1], [1]):
        gradient = torch.zeros_like(table)
        gradient[used] = torch.randn(len(used), 3, dtype=torch.float64)
        for row in used:
            counts[row] += 1
            second_moments[row] = beta * second_moments[row] + (1 - beta) * float(gradient[row].square().mean())
            rms = (second_moments[row] / (1 - beta ** counts[row])) ** 0.5
            expected[row] = (1 - lr * decay) * expected[row] - lr * gradient[row] / rms
        rowwise_adam_update(table, gradient, state, lr=lr, weight_decay=decay, beta=beta)
        torch.testing.assert_close(table, expected)
    assert torch.equal(state[2], torch.zeros(2)) and torch.equal(state[4], torch.zeros(2))


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_sparse_gradients_give_the_same_updates_as_dense_ones(recipe: Recipe, clip: float) -> None:
    torch.manual_seed(0)
    whole = ModernGPT(CONFIG)
    torch.nn.init.normal_(whole.head.weight)  # or no gradient would come to the tables at first
    sparse = copy.deepcopy(whole)
    use_sparse_gradients(sparse)
    config = recipe(optimizer="muon", weight_decay=0.1).config
    runs = [(model, build_optimizer(model, config)) for model in (whole, sparse)]
    for _ in range(3):
        windows = torch.randint(11, (2, 4, 8))
        norms = []
        for model, optimizer in runs:
            for tokens_BT in windows:  # two micro-batches: gradients add up
                F.cross_entropy(model(tokens_BT).flatten(0, 1), tokens_BT.flatten()).backward()
            gradients = [p.grad for p in model.ngram_embedding.parameters()]
            assert all(g is not None and g.is_sparse == (model is sparse) for g in gradients)
            norms.append(clip_gradients(model, clip))
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(*norms)
    for one, other in zip(whole.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_only_used_rows_are_updated(recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = ModernGPT(CONFIG)
    torch.nn.init.normal_(model.head.weight)
    use_sparse_gradients(model)
    optimizer = build_optimizer(model, recipe(optimizer="muon", weight_decay=0.1).config)
    tokens_BT = torch.tensor([[1, 2, 1, 2, 1, 2, 1, 2]])
    F.cross_entropy(model(tokens_BT).flatten(0, 1), tokens_BT.flatten()).backward()
    optimizer.step()
    pairs, _ = model.ngram_embedding.parameters()
    moved = [(1 + 12 * 11) % 97, 2 + 12 * 1, 1 + 12 * 2]  # the first token without a predecessor, and the two pairs
    assert sorted(moved) == pairs.detach().abs().sum(-1).nonzero().flatten().tolist()
