"""Expected time of a step on GPUs that are not here, as arithmetic: a roofline with measured constants.

The time of a step is that of its matrix products, of its memory traffic, of its update, and of the communication that
is not hidden behind computation. Its utilisation is that of PaLM (Chowdhery et al. 2022, appendix B): the FLOPs of the
model's forward and backward pass, nothing recomputed, over the bfloat16 limit of the GPU.

The constants were measured with the full-size models on an H200 (benchmarks/results/gpu-steps.json; a test compares).
That other models and GPUs keep them is an assumption.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from quill.model.config import architecture_of
from quill.planning.gpus import ETHERNET, GPU, GPUS_OF_A_NODE
from quill.planning.parallel import Parallel, ProcessCost, part_of_run, process_cost, trace_process
from quill.planning.planned_run import PlannedRun
from quill.training.config import tokens_per_step

PRODUCTS = 0.79
"""Share of the datasheet's limit that a product of two 8192 x 8192 matrices reached."""
TRAFFIC = {("classic", False): 770, ("classic", True): 480, ("modern", False): 1750, ("modern", True): 580}
"""Bytes read and written for each token, layer and unit of width in both passes; by architecture and `--compile`."""
LOGIT_TRAFFIC = 40
"""Bytes read and written for each logit: its bfloat16 and float32 values, softmax and gradients."""
LINKS = 0.7
"""Share of a link's bandwidth that a collective operation reaches: assumed."""
BACKWARD = 2 / 3
"""Share of both passes in which gradients are computed, and sent at the same time."""
USABLE_MEMORY = 0.9
"""Share of a GPU's memory for tensors; the rest is for CUDA, NCCL and fragmentation: assumed."""

ASSUMPTIONS = (
    "products at 79 % of the limit, memory traffic of a token as measured with 10.65 M parameters on an H200",
    "links at 70 % of their bandwidth; gradients are sent while the backward pass of the last micro-batch runs",
    "kernels start in no time: a step that is too small to keep its GPU busy takes longer",
)


@dataclass(frozen=True)
class ExpectedStep:
    """A step on `world_size` GPUs: its flags, memory, traffic, time and utilisation."""

    world_size: int
    batch_size: int
    gradient_accumulation_steps: int
    cost: ProcessCost
    fits: bool
    seconds: float
    seconds_without_overlap: float
    """if communication were never hidden behind computation"""
    tokens_per_second: float
    utilisation: float
    utilisation_without_overlap: float


def expect_step(run: PlannedRun, gpu: GPU, world_size: int, parallel: Parallel = "ddp") -> ExpectedStep:
    """Return what a step of this run is expected to need on each of `world_size` GPUs."""
    config, shape, part = run.config, run.model, part_of_run(run, world_size)
    cost, traced = process_cost(run, world_size, parallel), trace_process(run, world_size)
    compiled = compiles(run, world_size, parallel)
    repeats = config.gradient_accumulation_steps
    bytes_moved = TRAFFIC[architecture_of(shape), compiled] * shape.n_layer * shape.n_embd
    bytes_moved = part.tokens_per_micro_batch * (bytes_moved + LOGIT_TRAFFIC * shape.vocab_size)
    limit = gpu.float32 if run.context.dtype == torch.float32 else gpu.bfloat16
    passes = repeats * (traced.flops / (PRODUCTS * limit) + bytes_moved / gpu.bandwidth)
    update = update_seconds(run, gpu, world_size, parallel)
    hidden_behind = passes if parallel == "fsdp" else BACKWARD * passes / repeats
    exchange = (cost.sent_gradients + cost.sent_weights) / link_speed(gpu, world_size)
    rest = cost.sent_updates / link_speed(gpu, world_size)  # the update waits for it
    seconds = passes + update + rest + max(0.0, exchange - hidden_behind)
    slowest = passes + update + rest + exchange
    model_flops = 3 * traced.evaluation_flops * repeats / gpu.bfloat16
    return ExpectedStep(
        world_size=world_size,
        batch_size=config.batch_size,
        gradient_accumulation_steps=repeats,
        cost=cost,
        fits=cost.peak <= USABLE_MEMORY * gpu.memory,
        seconds=seconds,
        seconds_without_overlap=slowest,
        tokens_per_second=tokens_per_step(shape, config) / seconds,
        utilisation=model_flops / seconds,
        utilisation_without_overlap=model_flops / slowest,
    )


def compiles(run: PlannedRun, world_size: int, parallel: Parallel = "ddp") -> bool:
    """Return whether the model is compiled: with `auto`, where steps are not CUDA graphs; never with FSDP."""
    if parallel == "fsdp" and world_size > 1:
        return False
    captured = world_size == 1 and not run.context.gradient_checkpointing
    return run.context.compile is True or (run.context.compile == "auto" and not captured)


def update_seconds(run: PlannedRun, gpu: GPU, world_size: int, parallel: Parallel) -> float:
    """Return the time of an update: it reads gradients, reads and writes weights and state, and multiplies for Muon."""
    traced = trace_process(run, world_size)
    state = (3 * traced.weights + 2 * traced.optimizer) / (world_size if parallel == "fsdp" else 1)
    return state / gpu.bandwidth + traced.update_flops / world_size / gpu.float32


def link_speed(gpu: GPU, world_size: int) -> float:
    """Return the bytes a second that pass from one process to the next: of the slowest link between them."""
    if world_size <= GPUS_OF_A_NODE:
        return LINKS * gpu.link
    return LINKS * min(gpu.link, gpu.network or ETHERNET)


def largest_steps(run: PlannedRun, gpu: GPU, world_size: int, parallel: Parallel = "ddp") -> PlannedRun | None:
    """Return the same batch for `world_size` GPUs, in the fewest micro-batches that fit; None if it cannot be divided.

    If not even one window fits, the micro-batch of each process is one window.
    """
    config = run.config
    windows, rest = divmod(config.batch_size * config.gradient_accumulation_steps, world_size)
    if rest or not windows:
        return None

    def planned(part: int) -> PlannedRun:
        return run.change(batch_size=part * world_size, gradient_accumulation_steps=windows // part)

    sizes = [size for size in range(1, windows + 1) if windows % size == 0]
    if world_size == 1 and windows > 1 and process_cost(planned(windows), 1).peak <= USABLE_MEMORY * gpu.memory:
        return planned(windows)
    several = replace(planned(1), config=replace(planned(1).config, gradient_accumulation_steps=2))  # keep gradients
    one, two = (process_cost(several.change(batch_size=n * world_size), world_size, parallel).peak for n in (1, 2))
    fitting = [size for size in sizes if one + (size - 1) * (two - one) <= USABLE_MEMORY * gpu.memory]
    return planned(max(fitting, default=1))
