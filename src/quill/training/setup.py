"""Set-up before the first step of a run: model, optimizer, and the step itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from quill.acceleration.apply import apply_acceleration
from quill.acceleration.compile import compile_choice, compile_model
from quill.acceleration.cuda_graph import CudaGraphCapture
from quill.acceleration.data_parallel import average_sparse_gradients, data_parallel
from quill.data.mixed_tokens import Tokens
from quill.model.build import Model, build_model
from quill.model.config import ModelConfig
from quill.optim.optimizer import Optimizer
from quill.training.batches import HostBatches, plan_batches
from quill.training.config import TrainConfig, has_ngram_updates
from quill.training.context import RunContext
from quill.training.graph_step import Result, can_be_captured, captured_step
from quill.training.parameter_groups import build_optimizer
from quill.training.step import TrainStep

if TYPE_CHECKING:
    from quill.acceleration.fully_sharded import FullSharding

Initialize = Callable[[Model], object]
"""Changes the initial weights of a model in place, for example to those of a trained one."""


@dataclass(frozen=True)
class Session:
    """A model with its optimizer, ready to train on the device of its run."""

    model: Model
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    """scales the loss so that small float16 gradients do not become 0; disabled for other number formats"""
    sharding: FullSharding | None = None
    """given if each process has some rows of every weight and of its optimizer state"""


def build_session(
    model_config: ModelConfig,
    config: TrainConfig,
    context: RunContext,
    initialize: Initialize | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Session:
    """Return a new model and its optimizer. Initial weights are drawn from the recipe's seed."""
    torch.manual_seed(config.seed)
    model = build_model(model_config).to(context.device)
    if initialize is not None:
        initialize(model)
    optimizer = build_optimizer(model, config)
    scaler = torch.amp.GradScaler(context.device.type, enabled=context.dtype == torch.float16)
    optimizer.orthogonalize = context.group.share_out(optimizer.orthogonalize)
    accelerate(model, config, context, warn)
    return Session(model, optimizer, scaler)


def shard_session(session: Session, context: RunContext) -> Session:
    """Return the session in which each process has its rows of all weights and of their optimizer state."""
    from quill.acceleration.fully_sharded import FullSharding  # importing PyTorch's FSDP takes a second

    model, optimizer, sharding = session.model, session.optimizer, FullSharding(context.device)
    before = dict(model.named_parameters())
    sharding.shard(model)
    weights = dict(model.named_parameters())
    state = {name: optimizer.state.pop(weight) for name, weight in before.items() if weight in optimizer.state}
    for group in optimizer.param_groups:
        group["params"] = [weights[name] for name in group["names"]]
    for name, values in state.items():
        optimizer.state[weights[name]] = {key: sharding.part(each, weights[name]) for key, each in values.items()}
    optimizer.shards = sharding
    return replace(session, sharding=sharding)


def whole_model(session: Session, config: TrainConfig, context: RunContext) -> Model:
    """Return the model with all rows of its weights: a copy if they are sharded. All processes call this."""
    sharding = session.sharding
    if sharding is None:
        return session.model
    with unchanged_random_numbers(context.device):
        model = build_model(session.model.config).to(context.device)
    for copy, weight in zip(model.parameters(), session.model.parameters(), strict=True):
        copy.detach().copy_(sharding.whole(sharding.local(weight), weight))
    accelerate(model, config, context)
    return model


def accelerate(
    model: Model,
    config: TrainConfig,
    context: RunContext,
    warn: Callable[[str], None] = lambda message: None,
    check: bool = True,
) -> None:
    """Apply to a model the optimizations of a run; `check` and `warn` are as in `apply_acceleration`."""
    apply_acceleration(
        model,
        context.device,
        compiled=context.compile is True,
        gradient_checkpointing=context.gradient_checkpointing,
        sparse_gradients=has_ngram_updates(config),
        warn=warn,
        check=check,
    )


def train_step(
    session: Session,
    forward: Callable[[Tensor], Tensor],
    config: TrainConfig,
    context: RunContext,
    check: Callable[[], None] = lambda: None,
) -> TrainStep:
    """Return the optimizer step of a recipe; `forward` is the session's model, compiled or not."""
    model, sharding = session.model, session.sharding
    step = TrainStep(
        model,
        forward,
        session.optimizer,
        session.scaler,
        context.autocast,
        micro_batch_size=config.batch_size // context.group.ranks.world_size,
        accumulation_steps=config.gradient_accumulation_steps,
        max_norm=config.grad_clip,
        check=check,
        sharding=sharding,
    )
    if isinstance(forward, DistributedDataParallel):
        return replace(step, unsynchronized=forward.no_sync, exchange=partial(average_sparse_gradients, forward))
    if sharding is not None:
        average = partial(sharding.average_whole_gradients, model)
        return replace(step, unsynchronized=partial(sharding.unsynchronized, model), exchange=average)
    return step


def build_step(
    session: Session,
    tokens: Tokens,
    config: TrainConfig,
    context: RunContext,
    warn: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> tuple[Callable[[int], Result], bool]:
    """Return a function that runs the step of a given number on these tokens, and whether the model is compiled.

    On a GPU the whole step is captured as a CUDA graph if possible. Several processes average their gradients.
    `warn` is called with what failed, and `check` is called between micro-batches. The random-number state does not
    change.
    """
    group = context.group
    plan = plan_batches(session.model.config, config)
    host = HostBatches(tokens, plan, context.device, group.ranks)
    capture = can_be_captured(context, tokens)
    with context.autocast:
        example_BT = host(0)[0][: config.batch_size // group.ranks.world_size]
        choice = False if context.sharded else compile_choice(context.compile, captured=capture)
        with unchanged_random_numbers(context.device):
            forward = compile_model(session.model, choice, example_BT, warn)
        compiled = forward is not session.model
        if not group.alone and not context.sharded:
            assert isinstance(forward, nn.Module)
            forward = data_parallel(forward, example_BT)
    step = train_step(session, forward, config, context, check)
    if capture:
        return captured_step(step, tokens, plan, CudaGraphCapture(context.device), warn), compiled

    def run_step(number: int) -> Result:
        group.draw_own_numbers(config.seed, number)
        return step(*host(number))

    return run_step, compiled


def unchanged_random_numbers(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context at whose end the random number generators have the state of its start."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of the random number generators that a step on this device uses."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def abandon_step(session: Session, device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Drop the gradients of an unfinished step, and restore the generators' state before it."""
    session.optimizer.zero_grad(set_to_none=True)
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
