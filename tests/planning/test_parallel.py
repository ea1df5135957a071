"""Memory and traffic of each of several processes are those of textbook collectives, and add up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from quill.errors import ConfigError
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModernConfig
from quill.planning.memory_trace import trace_step
from quill.planning.parallel import (
    group_bytes,
    has_sparse_gradients,
    muon_bytes,
    process_cost,
    sparse_bytes,
    trace_process,
)
from quill.planning.planned_run import PlannedRun
from quill.training.config import TrainConfig
from quill.training.context import resolve_context

SHAPE = GPTConfig(11, block_size=32, n_layer=3, n_head=2, n_embd=16, dropout=0.0)
RUN = PlannedRun(SHAPE, TrainConfig(batch_size=8), resolve_context(device="cpu"))
TABLES = ModernConfig(11, block_size=32, n_layer=3, n_head=2, n_embd=16, ngram=3, ngram_rows=97)
MUON = PlannedRun(TABLES, TrainConfig(batch_size=8, optimizer="muon"), RUN.context)


def test_one_process_needs_what_the_trace_of_a_step_says() -> None:
    cost, traced = process_cost(RUN, 1), trace_step(RUN)
    assert cost.peak == traced.weights + traced.optimizer + traced.activations
    assert (cost.gradients, cost.sent, cost.gathered) == (0, 0, 0)


@pytest.mark.parametrize("run", [RUN, MUON, RUN.change(gradient_accumulation_steps=3)], ids=["adamw", "muon", "3"])
def test_the_parts_of_a_process_are_its_traced_peak(run: PlannedRun) -> None:
    cost, traced = process_cost(run, 2), trace_process(run, 2)
    assert cost.peak == traced.weights + traced.optimizer + traced.activations
    assert cost.gradients == traced.weights - sparse_bytes(run) and min(cost.activations, cost.logits) >= 0


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_an_all_reduce_sends_each_gradient_almost_twice_and_a_shard_once(world_size: int) -> None:
    W, weights = world_size, trace_step(RUN).weights
    ddp, fsdp = process_cost(RUN, W, "ddp"), process_cost(RUN, W, "fsdp")
    assert ddp.sent == round(2 * (W - 1) / W * weights)
    outside, block = group_bytes(RUN)
    assert fsdp.sent_gradients == round((W - 1) / W * weights)
    assert fsdp.sent_weights == round((W - 1) / W * (outside + 2 * 3 * block))
    assert (fsdp.weights, fsdp.gradients) == (math.ceil(weights / W),) * 2
    assert fsdp.optimizer == math.ceil(ddp.optimizer / W)
    assert (fsdp.activations, fsdp.logits) == (ddp.activations, ddp.logits)


def test_every_micro_batch_gathers_weights_and_the_last_one_sends_gradients() -> None:
    one, three = (process_cost(RUN.change(gradient_accumulation_steps=n), 2, "fsdp") for n in (1, 3))
    assert three.sent_weights == 3 * one.sent_weights and three.sent_gradients == one.sent_gradients
    ddp = [process_cost(RUN.change(gradient_accumulation_steps=n), 2).sent for n in (1, 3)]
    assert ddp[0] == ddp[1]


def test_sharding_divides_all_but_tables_with_sparse_gradients_and_gradients_that_are_added_up() -> None:
    ddp, fsdp = process_cost(MUON, 4, "ddp"), process_cost(MUON, 4, "fsdp")
    tables, rows = sparse_bytes(MUON), 2 * 4 * (97 + 97)
    assert fsdp.weights == tables + math.ceil((ddp.weights - tables) / 4)
    assert fsdp.optimizer == rows + math.ceil((ddp.optimizer - rows) / 4)
    assert fsdp.gradients == math.ceil(ddp.gradients / 4)
    accumulating = MUON.change(gradient_accumulation_steps=2)
    assert process_cost(accumulating, 4, "fsdp").gradients == process_cost(accumulating, 4, "ddp").gradients
    dense = MUON.change(device=torch.device("cuda"))
    assert process_cost(dense, 4, "fsdp").weights == math.ceil(ddp.weights / 4)


def test_sharded_matrices_travel_to_the_process_that_orthogonalizes_them_and_back() -> None:
    matrices = 12 * 4 * 16 * 16 + 2 * 3 * 4 * 4 * 16 * 16
    for W in (2, 4):
        assert process_cost(MUON, W, "fsdp").sent_updates == round(2 * (W - 1) / W * matrices / W)


@pytest.mark.parametrize("shape", [SHAPE, TABLES])
def test_weights_are_outside_the_blocks_or_in_one(shape: GPTConfig | ModernConfig) -> None:
    with torch.device("meta"):
        model = build_model(shape)
    outside, block = group_bytes(replace(RUN, model=shape))
    assert block == 4 * sum(weight.numel() for weight in model.blocks[0].parameters())
    # The skip weights of a modern model are outside its blocks, one for each of its layers.
    skips = 4 * (shape.n_layer - 1) * isinstance(shape, ModernConfig)
    assert outside + skips + 3 * block == 4 * sum(weight.numel() for weight in model.parameters())


def test_muons_updates_are_computed_once_and_gathered() -> None:
    """Three layers: 12 square matrices (queries, keys, values, outputs) and 3 of each of the two shapes of an MLP."""
    square, wide = 4 * 16 * 16, 4 * 4 * 16 * 16
    assert muon_bytes(MUON, 1) == 0 == muon_bytes(RUN, 4)
    assert muon_bytes(MUON, 2) == (12 // 2) * square + 2 * 2 * wide
    assert muon_bytes(MUON, 4) == 3 * ((12 // 4) * square + 2 * 1 * wide)
    assert process_cost(MUON, 4).sent_updates == muon_bytes(MUON, 4)


def test_only_rows_of_tables_that_a_step_used_are_sent() -> None:
    assert has_sparse_gradients(MUON) and not has_sparse_gradients(MUON.change(compile=True))
    assert not has_sparse_gradients(MUON.change(device=torch.device("cuda")))
    tables = 4 * (97 + 97) * 16
    assert sparse_bytes(MUON) == tables
    dense = trace_step(MUON).weights - tables
    tokens, row = 8 // 2 * 32, 4 * 16 + 8
    assert tokens > 97
    assert process_cost(MUON, 2).sent_gradients == dense + 2 * 97 * row
    one_window = MUON.change(batch_size=2)
    assert process_cost(one_window, 2).sent_gradients == dense + 2 * 32 * row


def test_a_micro_batch_that_cannot_be_divided_is_refused_with_the_nearest_that_can() -> None:
    for batch_size, words in ((8, "use 6 or 9"), (2, "use 3")):
        with pytest.raises(ConfigError, match=words):
            process_cost(RUN.change(batch_size=batch_size), 3)
