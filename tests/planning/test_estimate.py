"""What a run costs is known before it starts, and what is advised when memory runs out does help."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from quill.acceleration.apply import apply_acceleration
from quill.evaluation.loss import cross_entropy
from quill.model.build import build_model
from quill.model.config import GPTConfig, ModelConfig, ModernConfig
from quill.model.gpt import GPT
from quill.planning import estimate as estimating
from quill.planning import memory_budget, out_of_memory
from quill.planning.estimate import estimate_run
from quill.planning.memory_budget import Overhead, largest_batch_size, typical_overhead
from quill.planning.memory_trace import TensorCounter, trace_step
from quill.planning.out_of_memory import (
    describe_shortage,
    explain_out_of_memory,
    foresee_out_of_memory,
    is_out_of_memory,
)
from quill.planning.planned_run import PlannedRun
from quill.training.config import TrainConfig
from quill.training.context import resolve_context

CPU = torch.device("cpu")
SHAPE = GPTConfig(vocab_size=11, block_size=32, n_layer=3, n_head=2, n_embd=16, dropout=0.2)
RUN = PlannedRun(SHAPE, TrainConfig(batch_size=8, max_iters=10), resolve_context(device="cpu"))
# Attention with dropout computes in tiles on a CPU: each layer and each tile adds hundreds of traced operations.
QUICK = RUN.change(n_layer=1, dropout=0.0)


def with_shape(shape: ModelConfig) -> PlannedRun:
    """Return the small run with another model."""
    return replace(RUN, model=shape)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_trace_counts_what_real_tensors_take(dropout: float, checkpointing: bool) -> None:
    run = RUN.change(dropout=dropout, gradient_checkpointing=checkpointing)
    with TensorCounter() as counter:
        model = GPT(replace(SHAPE, dropout=dropout))
        weights = counter.live
        apply_acceleration(model, CPU, compiled=False, gradient_checkpointing=checkpointing, sparse_gradients=False)
        tokens_BT = torch.zeros(8, 32, dtype=torch.long)
        loss = cross_entropy(model(tokens_BT), tokens_BT)
        loss.backward()
    cost = trace_step(run)
    assert (cost.weights, cost.activations) == (weights, counter.peak - weights)
    assert cost.weights == 4 * model.count_parameters()


def test_flops_are_those_of_the_matrix_products() -> None:
    B, T, L, D, V = 8, 32, 3, 16, 11
    forward = 2 * B * T * (L * 12 * D * D + V * D) + L * 4 * B * T * T * D
    cost = trace_step(RUN)
    again = L * 2 * B * T * T * D  # attention weights, which are not kept
    assert cost.flops == 3 * forward + again  # the backward pass computes gradients of inputs and of weights
    assert cost.evaluation_flops == forward


def test_gradient_checkpointing_holds_less_and_computes_up_to_one_forward_pass_more() -> None:
    plain = trace_step(RUN)
    saving = trace_step(RUN.change(gradient_checkpointing=True))
    assert saving.activations < plain.activations * 0.6
    assert plain.flops < saving.flops <= plain.flops + plain.evaluation_flops


def test_several_micro_batches_hold_the_gradients_of_the_first() -> None:
    one = trace_step(RUN)
    several = trace_step(RUN.change(gradient_accumulation_steps=3))
    assert one.activations < several.activations <= one.activations + one.weights
    assert several.flops == one.flops


def test_adamw_keeps_two_numbers_for_each_weight() -> None:
    cost = trace_step(RUN)
    assert 2 * cost.weights <= cost.optimizer < 2 * cost.weights + 1000  # and a step counter for each matrix


def test_a_modern_recipe_keeps_a_momentum_for_each_matrix_and_two_numbers_for_each_row_of_a_table() -> None:
    shape = ModernConfig(vocab_size=255, block_size=32, n_layer=3, n_head=2, n_embd=16, ngram=2, ngram_rows=65_536)
    cost = trace_step(with_shape(shape).change(optimizer="muon"))
    matrices, by_adamw, rows = 3 * 12 * 16 * 16, 2 * (255 * 16) + 3, 65_536
    assert 0 <= cost.optimizer - 4 * (matrices + 2 * by_adamw + 2 * rows) < 100
    table = 4 * rows * 16
    assert trace_step(with_shape(shape)).activations > table > cost.activations, (
        "AdamW needs a gradient as large as the table"
    )


def test_attention_on_a_gpu_never_stores_its_weights() -> None:
    def growth(device: str) -> float:
        context = replace(RUN.context, device=torch.device(device))
        run = PlannedRun(replace(SHAPE, n_layer=1), replace(RUN.config, batch_size=1), context)
        costs = [trace_step(run.change(block_size=T)) for T in (512, 1024)]
        return costs[1].activations / costs[0].activations

    assert growth("cuda") < 2.01 < 2.3 < growth("cpu")


def test_tracing_takes_no_memory() -> None:
    giant = GPTConfig(vocab_size=50_000, block_size=4096, n_layer=4, n_head=64, n_embd=16_384, dropout=0.0)
    cost = trace_step(with_shape(giant).change(batch_size=256))
    assert cost.weights > 40e9 and cost.activations > 4e12


@pytest.mark.parametrize("limit", [3_000_000, 8_000_000, pytest.param(80_000_000, marks=pytest.mark.long)])
def test_the_largest_micro_batch_fits_and_one_more_does_not(limit: int) -> None:
    run, overhead = RUN.change(n_layer=1), Overhead(process=1_000_000, fragmentation=0.3)
    largest = largest_batch_size(run, overhead, limit)
    fitting, next_one = (trace_step(run.change(batch_size=largest + more)) for more in (0, 1))
    assert overhead.peak(fitting) <= limit < overhead.peak(next_one)
    assert largest_batch_size(run, overhead, 1_000_000) == 0


def test_the_parts_of_an_estimate_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quill.planning.timing.QUICK_SECONDS", 0.01)  # how well a step is timed is not tested
    before = torch.get_rng_state()
    run = QUICK.change(gradient_accumulation_steps=2)
    found = estimate_run(run, val_tokens=100, sample_tokens=5)
    assert torch.equal(before, torch.get_rng_state())
    model = build_model(run.model)
    assert found.parameters == model.count_parameters()
    assert found.parameters_without_positions == model.count_parameters(positions=False)
    parts = ("weights", "optimizer", "activations", "process", "allocator")
    together = sum(getattr(found, f"{part}_bytes") for part in parts)
    assert found.peak_bytes == pytest.approx(together, abs=1)
    assert found.fits and found.largest_batch_size > run.config.batch_size
    assert found.tokens_per_step == 2 * 8 * 32
    assert found.flops_per_step == 2 * trace_step(run).flops
    assert found.seconds_per_step and found.tokens_per_second and found.run_seconds and found.evaluation_seconds
    assert found.tokens_per_second * found.seconds_per_step == pytest.approx(found.tokens_per_step)
    evaluations = 2  # before the first step and after the last
    assert found.run_seconds == pytest.approx(10 * found.seconds_per_step + evaluations * found.evaluation_seconds)


def test_no_step_is_timed_where_not_even_one_window_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "memory_limit", lambda device: 1000)
    monkeypatch.setattr(estimating, "memory_without_model", lambda context, run: 900)
    monkeypatch.setattr("quill.planning.timing.build_session", None)  # to try would fail
    found = estimate_run(RUN)
    assert (found.fits, found.largest_batch_size, found.measured_batch_size) == (False, 0, 0)
    assert found.run_seconds is None and found.seconds_per_step is None


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception, answer: bool) -> None:
    assert is_out_of_memory(error) is answer


# One layer with one head, as each adds hundreds of traced operations.
FULL_SIZE = PlannedRun(GPTConfig(65, n_layer=1, n_head=1), TrainConfig(), resolve_context(device="cpu"))


@pytest.mark.parametrize(
    ("dropout", "limit"),
    [
        (0.0, 700_000_000),
        *(pytest.param(0.2, limit, marks=pytest.mark.long) for limit in (400_000_000, 700_000_000, 1_500_000_000)),
    ],
)
def test_advised_settings_fit_into_memory_and_keep_the_batch(dropout: float, limit: int) -> None:
    run = FULL_SIZE.change(dropout=dropout)
    line = describe_shortage(run, limit)
    assert "\n" not in line and line.startswith("batch_size=64 needs about ")
    advice = re.findall(r"((?:--\w+=\w+ )+)needs ([\d.]+) ([GM]B)", line)
    assert advice
    for flags, size, unit in advice:
        given = dict(re.findall(r"--(\w+)=(\w+)", flags))
        changed = run.change(
            **{n: value == "True" if value in ("True", "False") else int(value) for n, value in given.items()}
        )
        assert changed.config.batch_size * changed.config.gradient_accumulation_steps == 64
        peak = typical_overhead(changed).peak(trace_step(changed))
        assert peak <= limit
        assert float(size) * {"GB": 1e9, "MB": 1e6}[unit] == pytest.approx(peak, rel=0.06)


def test_where_no_batch_fits_a_smaller_model_is_advised() -> None:
    line = describe_shortage(FULL_SIZE, 100_000_000)
    assert "--batch_size=1 --gradient_checkpointing=True still needs" in line and "smaller --block_size" in line


def test_no_advice_is_given_that_is_followed_already() -> None:
    line = describe_shortage(RUN.change(batch_size=1, gradient_checkpointing=True), 1000)
    assert "this still needs" in line


def test_memory_that_ran_out_is_explained_even_where_the_estimate_says_that_it_fits() -> None:
    line = explain_out_of_memory(FULL_SIZE.change(dropout=0.0))
    assert line.startswith("memory ran out: batch_size=64 needs about ") and "--batch_size=" in line


def test_memory_that_ran_out_is_explained_even_where_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    for module in (memory_budget, out_of_memory):
        monkeypatch.setattr(module, "trace_step", fail)
    assert "--gradient_checkpointing=True" in explain_out_of_memory(RUN)


def test_a_run_that_will_not_fit_is_predicted_and_one_that_fits_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foresee_out_of_memory(RUN) is None
    monkeypatch.setattr(out_of_memory, "memory_limit", lambda device: 1000)
    assert "memory will hardly be enough: batch_size=8" in (foresee_out_of_memory(RUN) or "")
