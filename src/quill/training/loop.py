"""The training loop: text goes in as batches, and weights that can write come out. All of it is in `train`.

Everything it needs is handed in: the shape, the recipe, the tokens, and who is told about it. What happens to a single
batch is in step.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from quill.acceleration.apply import apply_acceleration
from quill.acceleration.compile import compile_choice, compile_model
from quill.acceleration.cuda_graph import CudaRecorder
from quill.checkpoints.run_folder import find_checkpoint, save_checkpoint
from quill.data.dataset import Dataset
from quill.data.windows import require_window
from quill.device import resolve_device, resolve_dtype
from quill.errors import ConfigError, TrainingError
from quill.evaluation.split_loss import evaluate_split
from quill.model.build import Model, build_model
from quill.model.config import ModelConfig
from quill.optim.optimizer import set_learning_rate
from quill.planning.out_of_memory import explaining_out_of_memory, foresee_out_of_memory
from quill.process import catch_interrupts
from quill.training.batches import fetch_batch
from quill.training.config import TrainConfig, acceleration_of, tokens_per_step
from quill.training.events import Report, describe_start
from quill.training.graph_step import can_be_recorded, choose_step
from quill.training.parameter_groups import build_optimizer
from quill.training.schedule import learning_rate_at
from quill.training.state import Progress, restore_training, training_state
from quill.training.step import TrainStep

RISING = 3  # evaluations without a better validation loss before the run says that it overfits


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: `reason` is finished, interrupted, patience or what `stop` said."""

    reason: str
    step: int
    val_loss: float | None
    best_val_loss: float | None
    best_step: int
    checkpoint: Path | None


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    dataset: Dataset,
    *,
    report: Report = lambda event: None,
    sample: Callable[[Model], str] | None = None,
    resume: bool = False,
    stop: Callable[[], str | None] = lambda: None,
    plan: Callable[[int], int] | None = None,
) -> TrainResult:
    """Train a GPT on a dataset, keeping checkpoints in `config.out_dir`, and return how it ended.

    `report` is told of everything as events (listed in docs/architecture.md), `sample` writes a text with the model
    at each evaluation, and `stop` is asked after each step for a reason to end early. `plan`, if given, is asked after
    each evaluation, with the steps done, how many the run shall have in all: its schedule then ends there. Ctrl-C saves
    and ends. A loss that is no number, or memory that runs out, is a TrainingError.
    """
    require_window(dataset.train, model_config.block_size, f"the training split of {dataset.name}")
    require_window(dataset.val, model_config.block_size, f"the validation split of {dataset.name}")
    if not resume and (Path(config.out_dir) / "last").exists():
        raise ConfigError(f"out_dir={config.out_dir!r} already holds a run: go on with it (resume), or choose another")
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    # Each weight is converted once a micro-batch anyway; a cache would hand a recorded step weights of the past.
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)

    torch.manual_seed(config.seed)
    with explaining_out_of_memory(model_config, config):
        model = build_model(model_config).to(device)
    optimizer = build_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)  # keeps small float16 gradients above 0
    progress = Progress()

    def warn(message: str) -> None:
        report({"event": "warning", "step": progress.step, "message": message})

    apply_acceleration(model, device, **acceleration_of(config), warn=warn)
    recorder = CudaRecorder(device) if can_be_recorded(config, dataset, device, dtype) else None
    with autocast:
        example_BT = fetch_batch(dataset, model_config, config, 0, device)[0][: config.batch_size]
        forward = compile_model(model, compile_choice(config.compile, captured=recorder is not None), example_BT, warn)
    if resume:
        progress = restore_training(config.out_dir, model, dataset.tokenizer, optimizer, scaler, device, dataset.sha256)
    whole_step = TrainStep(model, forward, optimizer, scaler, autocast, config)
    step = choose_step(whole_step, dataset, model_config, device, recorder, warn)
    report(describe_start(model, config, dataset, progress, device, dtype, compiled=forward is not model))

    checkpoint = find_checkpoint(config.out_dir, "last") if resume else None
    if device.type == "cpu" and (shortage := foresee_out_of_memory(model_config, config, device)):
        warn(shortage)  # a system may end a process that takes too much memory without a word
    started = time.perf_counter()
    reason = "finished"
    # The losses since the last line of the log stay on the device: to read one makes a GPU finish all its work first.
    losses, norms = torch.zeros(2, config.log_interval, device=device)
    with catch_interrupts() as interrupted, explaining_out_of_memory(model_config, config):
        if progress.step == 0:
            evaluate(model, config, dataset, progress, dtype, report, sample, started)
        config = replan(config, plan, progress.step, report)
        logged, log_started = progress.step, time.perf_counter()
        model.train()
        while progress.step < config.max_iters and reason == "finished":
            set_learning_rate(optimizer, learning_rate_at(progress.step, config))
            loss, norm = step(progress.step)  # batch, forward, backward, clipping, update: step.py
            losses[progress.step - logged], norms[progress.step - logged] = loss, norm
            progress.step += 1

            reason = "interrupted" if interrupted() else stop() or "finished"
            at_end = progress.step == config.max_iters or reason not in ("finished", "interrupted")
            evaluating = at_end or progress.step % config.eval_interval == 0
            saving = evaluating or reason == "interrupted"
            steps = progress.step - logged
            if not saving and steps < config.log_interval:
                continue

            check_finite(losses[:steps].tolist(), norms[:steps].tolist(), logged, config, scaled=scaler.is_enabled())
            now = time.perf_counter()
            report(
                {
                    "event": "step",
                    "step": progress.step,
                    "train_loss": losses[:steps].mean().item(),
                    "learning_rate": learning_rate_at(progress.step - 1, config),
                    "gradient_norm": norms[steps - 1].item(),
                    "tokens_per_second": steps * tokens_per_step(model_config, config) / (now - log_started),
                    "seconds": now - started,
                }
            )
            best = evaluating and evaluate(model, config, dataset, progress, dtype, report, sample, started)
            if config.patience and progress.evaluations_since_best >= config.patience and not at_end:
                reason = "patience"
            if saving:
                tensors, metadata = training_state(optimizer, scaler, progress, device)
                checkpoint = save_checkpoint(
                    config.out_dir, model, dataset.tokenizer, step=progress.step, val_loss=progress.val_loss,
                    best=best, training_tensors=tensors, training_metadata=metadata, text_sha256=dataset.sha256,
                )  # fmt: skip
            if evaluating and not at_end:
                config = replan(config, plan, progress.step, report)
            model.train()
            logged, log_started = progress.step, time.perf_counter()

    report(
        {
            "event": "end",
            "step": progress.step,
            "reason": reason,
            "best_step": progress.best_step,
            "best_val_loss": progress.best_val_loss,
            "seconds": time.perf_counter() - started,
            "checkpoint": str(checkpoint),
        }
    )
    return TrainResult(reason, progress.step, progress.val_loss, progress.best_val_loss, progress.best_step, checkpoint)


def replan(config: TrainConfig, plan: Callable[[int], int] | None, step: int, report: Report) -> TrainConfig:
    """Return the recipe with as many steps as are planned now, one more than are done at least; tell if that is new."""
    steps = max(step + 1, plan(step)) if plan else config.max_iters
    if steps != config.max_iters:
        report({"event": "plan", "step": step, "max_iters": steps})
    return replace(config, max_iters=steps)


def evaluate(
    model: Model,
    config: TrainConfig,
    dataset: Dataset,
    progress: Progress,
    dtype: torch.dtype,
    report: Report,
    sample: Callable[[Model], str] | None,
    started: float,
) -> bool:
    """Score both splits and write a sample, tell of it, and say whether the validation loss is the best so far.

    A split of up to eval_iters · batch_size windows is scored whole; the training loss is estimated on as much text.
    """
    limit = config.eval_iters * config.batch_size
    validation = evaluate_split(
        model, dataset.val, dataset.tokenizer, batch_size=config.batch_size, max_windows=limit, dtype=dtype
    )
    as_many = math.ceil(validation.tokens / model.config.block_size)
    training = evaluate_split(
        model, dataset.train, dataset.tokenizer, batch_size=config.batch_size, max_windows=as_many, dtype=dtype
    )
    best = progress.record(validation.loss)
    report(
        {
            "event": "evaluation",
            "step": progress.step,
            "train_loss": training.loss,
            "val_loss": validation.loss,
            "bits_per_character": validation.bits_per_character,
            "val_tokens": validation.tokens,
            "whole_split": validation.whole_split,
            "best": best,
            "seconds": time.perf_counter() - started,
        }
    )
    if progress.evaluations_since_best == RISING:
        message = (
            f"the validation loss has not fallen for {RISING} evaluations (best: {progress.best_val_loss:.4f} at step "
            f"{progress.best_step}): the model is learning its text by heart; more --dropout, a smaller model or more "
            f"text would help, and --patience={RISING} stops here"
        )
        report({"event": "warning", "step": progress.step, "message": message})
    if sample is not None:
        report({"event": "sample", "step": progress.step, "text": sample(model)})
    return best


def check_finite(losses: list[float], norms: list[float], first_step: int, config: TrainConfig, scaled: bool) -> None:
    """Raise TrainingError at the first loss or gradient that is no number: where, with what, and what to try.

    Where losses are `scaled` (float16), an infinite gradient only means that the scaler skips this step.
    """
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=first_step):
        if not math.isfinite(loss) or (not scaled and not math.isfinite(norm)):
            raise TrainingError(
                f"training went wrong at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
                f"{learning_rate_at(step, config):.3g}; try a lower --learning_rate, more --warmup_iters or "
                f"--dtype=float32 (the checkpoints before it are untouched)"
            )
