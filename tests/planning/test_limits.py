"""Sizes that cannot be had are refused at once, with the numbers; long runs and warm-ups are warned of."""

from __future__ import annotations

import pytest
import torch

from quill.errors import ConfigError
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModernConfig
from quill.planning import limits
from quill.planning.limits import (
    check_size,
    count_weights,
    least_memory,
    step_flops,
    warn_of_long_run,
    warn_of_long_warmup,
)
from quill.planning.memory_trace import trace_step
from quill.planning.planned_run import PlannedRun
from quill.training.config import TrainConfig
from quill.training.context import resolve_context

RUN = PlannedRun(GPTConfig(65), TrainConfig(), resolve_context(device="cpu"))
SHAPES = [
    GPTConfig(65, block_size=16, n_layer=3, n_head=2, n_embd=16),
    GPTConfig(65, block_size=16, n_layer=1, n_head=2, n_embd=16, bias=True, tie_weights=False),
    ModernConfig(65, block_size=16, n_layer=3, n_head=2, n_embd=16, ngram=3, ngram_rows=997),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_are_counted_without_listing_layers(shape: GPTConfig | ModernConfig) -> None:
    with torch.device("meta"):
        assert count_weights(shape) == build_model(shape).count_parameters()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_lower_bound_of_memory_is_less_than_a_step_takes(shape: GPTConfig | ModernConfig) -> None:
    for optimizer in ("adamw", "muon"):
        run = PlannedRun(shape, TrainConfig(batch_size=8, optimizer=optimizer), RUN.context)
        cost = trace_step(run)
        assert 0 < least_memory(run) <= cost.weights + cost.optimizer + cost.activations


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_flops_of_a_step_are_those_that_are_traced(shape: GPTConfig | ModernConfig) -> None:
    run = PlannedRun(shape, TrainConfig(batch_size=8), RUN.context)
    assert step_flops(run) == pytest.approx(trace_step(run).flops, rel=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": 100_000},
        {"n_embd": 6 * 10**4},
        {"n_layer": 4096, "n_embd": 6000},
        {"batch_size": 10**8},
        {"gradient_accumulation_steps": 10**7},
    ],
    ids=str,
)
def test_a_size_that_cannot_fit_is_refused_with_its_numbers(changes: dict) -> None:  # U22
    with pytest.raises(ConfigError) as caught:
        check_size(RUN.change(**changes))
    name, value = next(iter(changes.items()))
    assert f"{name}={value}" in str(caught.value)
    assert "available" in str(caught.value) or "one step" in str(caught.value)


def test_the_full_size_and_every_smaller_one_are_accepted() -> None:
    check_size(RUN)
    check_size(RUN.change(batch_size=1, n_layer=1))


def test_a_run_of_more_than_an_hour_on_a_cpu_is_warned_of_with_what_to_do_instead(monkeypatch) -> None:  # U2
    monkeypatch.setattr(limits, "flops_per_second", lambda device: 1e11)
    line = warn_of_long_run(RUN) or ""
    assert " h " in line and "--minutes=5" in line and "--config=laptop" in line
    assert warn_of_long_run(RUN.change(max_iters=10)) is None
    assert warn_of_long_run(RUN.change(device=torch.device("cuda"))) is None


def test_a_warmup_that_outlasts_the_run_is_warned_of() -> None:  # T10
    assert "warmup_iters=100" in (warn_of_long_warmup(TrainConfig(max_iters=100)) or "")
    assert warn_of_long_warmup(TrainConfig(max_iters=101)) is None
