"""Steps on GPUs that are not here: the constants are those that were measured, and limits are respected."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quill.errors import ConfigError
from quill.model.config import GPTConfig
from quill.planning.gpus import ETHERNET, GPUS, find_gpu
from quill.planning.parallel import process_cost
from quill.planning.planned_run import PlannedRun
from quill.planning.utilisation import LINKS, PRODUCTS, USABLE_MEMORY, compiles, expect_step, largest_steps, link_speed
from quill.runs.presets import read_config
from quill.runs.settings import build_configs, default_settings
from quill.training.config import TrainConfig
from quill.training.context import RunContext

ROOT = Path(__file__).parents[2]
CUDA = RunContext(Path("out"), torch.device("cuda"), torch.bfloat16)
SHAPE = GPTConfig(65, block_size=256, n_layer=2, n_head=2, n_embd=64, dropout=0.0)
RUN = PlannedRun(SHAPE, TrainConfig(batch_size=64), CUDA)


@pytest.mark.parametrize(
    ("contestant", "preset", "compiled"),
    [
        ("Quill classic, graph", "shakespeare", False),
        ("Quill classic, compiled graph", "shakespeare", True),
        ("Quill modern, graph", "modern", False),
        ("Quill modern, compiled graph", "modern", True),
    ],
)
def test_the_model_of_time_agrees_with_the_measured_speed_of_an_h200(
    contestant: str, preset: str, compiled: bool
) -> None:
    file = ROOT / "benchmarks/results/gpu-steps.json"
    steps = json.loads(file.read_text(encoding="utf-8"))["results"]["steps"]
    asked = read_config(preset)[0]
    settings = default_settings(asked.get("architecture", "classic")) | asked
    model, config, _ = build_configs(settings, vocab_size=65)
    step = expect_step(PlannedRun(model, config, replace(CUDA, compile=compiled)), GPUS["h200"], 1)
    assert step.tokens_per_second == pytest.approx(steps[contestant]["tokens_per_second"]["median"], rel=0.02)
    limit = steps["matrix product"]["flops_per_second"]["median"]
    assert limit == pytest.approx(PRODUCTS * GPUS["h200"].bfloat16, rel=0.01)


def test_a_wider_model_has_a_higher_utilisation_and_no_step_beats_the_limit() -> None:
    shares = [expect_step(RUN.change(n_embd=width), GPUS["h100"], 1).utilisation for width in (64, 512, 4096)]
    assert shares == sorted(shares) and shares[0] < 0.1 and 0.4 < shares[-1] < PRODUCTS


def test_communication_never_makes_a_step_faster_and_is_hidden_at_most_whole() -> None:
    for parallel in ("ddp", "fsdp"):
        together = expect_step(RUN, GPUS["a100"], 8, parallel)
        assert together.seconds <= together.seconds_without_overlap
        assert together.utilisation_without_overlap <= together.utilisation
    slow = replace(GPUS["a100"], link=1e6)
    sent = process_cost(RUN, 8).sent
    assert expect_step(RUN, slow, 8).seconds == pytest.approx(sent / (LINKS * 1e6), rel=0.05)


def test_the_slowest_link_between_two_processes_counts() -> None:
    assert link_speed(GPUS["h100"], 8) == LINKS * 450e9
    assert link_speed(GPUS["h100"], 9) == LINKS * 400e9
    assert link_speed(GPUS["rtx-4090"], 16) == LINKS * ETHERNET


def test_auto_compiles_where_a_step_is_not_captured() -> None:
    assert not compiles(RUN, 1) and compiles(RUN, 2) and compiles(RUN.change(gradient_checkpointing=True), 1)
    assert compiles(RUN.change(compile=True), 1) and not compiles(RUN.change(compile=False), 8)


@pytest.mark.parametrize("world_size", [1, 2, 8, 64])
def test_the_batch_is_the_same_at_any_world_size_and_its_micro_batch_fits(world_size: int) -> None:
    gpu = replace(GPUS["h100"], memory=process_cost(RUN.change(batch_size=16), 2).peak / USABLE_MEMORY)
    planned = largest_steps(RUN, gpu, world_size)
    assert planned is not None
    assert planned.config.batch_size * planned.config.gradient_accumulation_steps == 64
    assert process_cost(planned, world_size).peak <= USABLE_MEMORY * gpu.memory
    if planned.config.gradient_accumulation_steps > 1:  # a larger one does not fit
        larger = planned.change(batch_size=2 * planned.config.batch_size)
        assert process_cost(larger, world_size).peak > USABLE_MEMORY * gpu.memory


def test_a_batch_with_fewer_windows_than_gpus_cannot_be_divided() -> None:
    assert largest_steps(RUN.change(batch_size=12), GPUS["h100"], 8) is None
    assert largest_steps(RUN, GPUS["h100"], 128) is None


def test_gpus_are_found_by_the_ways_to_write_their_names() -> None:
    for name in ("h100", "H100", "NVIDIA H100", "nvidia_h100"):
        assert find_gpu(name) is GPUS["h100"]
    assert find_gpu("RTX 4090") is find_gpu("rtx4090") is GPUS["rtx-4090"]
    assert find_gpu("MI300X") is GPUS["mi300x"]
    assert {find_gpu(name) for name in ("auto", "cpu", "cuda", "cuda:1", "mps")} == {None}
    for name, words in (("h10", "did you mean 'h100'"), ("rtx-4091", "did you mean 'rtx-4090'"), ("tpu", "l40s")):
        with pytest.raises(ConfigError, match=words) as caught:
            find_gpu(name)
        assert "\n" not in str(caught.value)


def test_every_gpu_has_positive_limits_and_a_source() -> None:
    for gpu in GPUS.values():
        limits = (gpu.memory, gpu.bfloat16, gpu.float32, gpu.bandwidth, gpu.link)
        assert min(limits) > 0 and gpu.float32 < gpu.bfloat16 and gpu.network >= 0
        assert "datasheet" in gpu.source or "whitepaper" in gpu.source
