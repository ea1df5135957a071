"""Compare sharded weights with whole ones, in each of several processes. Run by torchrun; rank 0 prints JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from quill.distributed.environment import read_ranks
from quill.distributed.group import Group
from quill.distributed.joining import joined
from quill.evaluation.loss import cross_entropy
from quill.model.build import Model
from quill.model.config import GPTConfig, ModernConfig
from quill.training.config import TrainConfig
from quill.training.context import RunContext
from quill.training.setup import build_session, shard_session, train_step, whole_model

VOCAB = 13  # rows that no number of processes below divides


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def spread_out(model: Model) -> None:
    """Draw all weights: those that start at zero have gradients of rounding errors, which both optimizers magnify."""
    for weight in model.parameters():
        weight.detach().normal_(std=0.3)


def compare(modern: bool, optimizer: Literal["adamw", "muon"], group: Group) -> dict[str, Any]:
    """Take two steps with whole weights, and with sharded ones, on the same batch; return what differs."""
    shape = {"block_size": 8, "n_layer": 3, "n_head": 2, "n_embd": 12, "dropout": 0.0}
    tables = {"ngram": 2, "ngram_rows": 7, "ngram_dropout": 0.0}
    config = ModernConfig(VOCAB, **shape, **tables) if modern else GPTConfig(VOCAB, **shape)
    recipe = TrainConfig(batch_size=group.ranks.world_size, grad_clip=0.05, optimizer=optimizer, weight_decay=0.1)
    context = RunContext(Path("out"), torch.device("cpu"), torch.float32, group=group, sharded=True)
    alone = replace(context, group=Group(), sharded=False)
    tokens_BT = torch.randint(VOCAB, (group.ranks.world_size, 8), generator=torch.Generator().manual_seed(1))

    whole = build_session(config, recipe, alone, spread_out)
    step = train_step(whole, whole.model, recipe, alone)
    norms = [float(step(tokens_BT, tokens_BT)[1]) for _ in range(2)]

    session = build_session(config, recipe, context, spread_out)
    before = [weight.detach().clone() for weight in session.model.parameters()]
    session = shard_session(session, context)
    kept = [weight.detach() for weight in whole_model(session, recipe, context).parameters()]
    step = train_step(session, session.model, recipe, context)
    mine_BT = tokens_BT[group.ranks.rank :][:1]
    sharded_norms = [float(step(mine_BT, mine_BT)[1]) for _ in range(2)]
    after = [weight.detach() for weight in whole_model(session, recipe, context).parameters()]

    sharding, model = session.sharding, session.model
    assert sharding is not None
    cross_entropy(model(mine_BT), mine_BT).backward()
    cross_entropy(whole.model(mine_BT), mine_BT).backward()
    sizes = []
    for each in (session, whole):
        weights = list(each.model.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None and not weight.grad.is_sparse]
        state = [tensor for weight in weights for tensor in each.optimizer.state[weight].values()]
        sizes.append(bytes_of([sharding.local(tensor) for tensor in (*weights, *gradients)]) + bytes_of(state))
    final = [weight.detach() for weight in whole.model.parameters()]

    def largest(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    return {
        "kept": all(torch.equal(a, b) for a, b in zip(before, kept, strict=True)),
        "norms": [norms, sharded_norms],
        "largest difference": largest(final, after),
        "largest change": largest(before, after),
        "share of memory": sizes[0] / sizes[1],
        "rows": [list(sharding.local(weight).shape) for weight in model.parameters()],
    }


def main() -> None:
    ranks = read_ranks()
    with joined(ranks, {}) as group:
        found = {}
        found["classic"] = compare(False, "adamw", group)
        found["modern"] = compare(True, "adamw", group)
        found["muon"] = compare(True, "muon", group)
        everywhere: list[Any] = [None] * ranks.world_size
        dist.all_gather_object(everywhere, found)
        if group.first:
            print(json.dumps(everywhere))


main()
