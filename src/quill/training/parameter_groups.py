"""Parameter groups, each updated by AdamW, Muon or row-wise Adam."""

from __future__ import annotations

from typing import Any

from torch import nn

from quill.optim.optimizer import Optimizer
from quill.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the recipe's optimizer over the model's weights, a shared weight once.

    Weight decay applies to weights with two or more dimensions (matrices and embeddings): only there does a smaller
    weight mean a simpler function.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    muon, own_rate = config.optimizer == "muon", config.embedding_learning_rate is not None
    kinds = {name: kind_of(name, weights[name], model, muon=muon, own_rate=own_rate) for name in weights}
    rates = {
        "matrix": config.learning_rate,
        "vector": config.learning_rate,
        "embedding": config.embedding_learning_rate or config.learning_rate,
        "muon": config.muon_learning_rate,
        "rowwise_adam": config.ngram_learning_rate,
    }
    groups: list[dict[str, Any]] = []
    for kind, rate in rates.items():
        if names := [name for name in weights if kinds[name] == kind]:
            decay = 0.0 if kind == "vector" else config.weight_decay
            share = rate / config.learning_rate if config.learning_rate else 1.0
            group = {"kind": kind, "lr": rate, "share": share, "weight_decay": decay}
            groups.append(group | {"names": names, "params": [weights[name] for name in names]})
    return Optimizer(groups, (config.beta1, config.beta2))


def kind_of(name: str, weight: nn.Parameter, model: nn.Module, *, muon: bool, own_rate: bool) -> str:
    """Return the group of a weight: vector, muon, rowwise_adam, embedding or matrix.

    `muon`: Muon updates the matrices of blocks. `own_rate`: embeddings have a learning rate of their own.
    """
    if not decays(weight):
        return "vector"
    if muon and name.startswith(("blocks.", "ngram_embedding.")):
        return "muon" if name.startswith("blocks.") else "rowwise_adam"
    of_embedding = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
    return "embedding" if of_embedding and own_rate else "matrix"


def decays(parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: to matrices, not to biases and norms."""
    return parameter.dim() >= 2
