"""The training loop: batches in, checkpoints out. All of it is in `train`.

The optimizer step is in step.py, the set-up before the first step in setup.py, and the evaluation in evaluator.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from quill.checkpoints.run_folder import find_checkpoint, holds_run, make_last_best, save_checkpoint
from quill.data.mixed_dataset import AnyDataset
from quill.errors import ConfigError, TrainingError
from quill.model.build import Model
from quill.model.config import ModelConfig
from quill.optim.optimizer import set_learning_rate
from quill.process import catch_interrupts
from quill.training.config import TrainConfig, tokens_per_step
from quill.training.context import RunContext
from quill.training.evaluator import Evaluator, Interrupted, Sample
from quill.training.events import Report, TrainResult, describe_start
from quill.training.schedule import learning_rate_schedule
from quill.training.setup import (
    Initialize,
    abandon_step,
    build_session,
    build_step,
    rng_state,
    shard_session,
    whole_model,
)
from quill.training.state import Progress, own_state, restore_training, share_training, training_state

LONGEST_INTERVAL = 10_000  # steps whose losses are kept on the device

Plan = Callable[[int], int]
"""Returns how many steps the run has in all, given the number of finished steps."""

Watch = Callable[[Model, Progress, int], int]
"""Looks at the model between two steps, given how many steps the run has in all; returns the step to look at next."""


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    context: RunContext,
    dataset: AnyDataset,
    *,
    report: Report = lambda event: None,
    sample: Sample | None = None,
    initialize: Initialize | None = None,
    resume: bool = False,
    stop: Callable[[], str | None] = lambda: None,
    plan: Plan | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train a GPT on a dataset, keep checkpoints in `context.out_dir`, and return how the run ended.

    `report` receives every event (listed in docs/architecture.md), `sample` generates a text at each evaluation, and
    `initialize` changes the fresh weights. `stop` is called after each step; a text that it returns ends the run, with
    this reason. `plan` is called at each `step` event and after each evaluation; the run and its schedule then end at
    the step that it returns. `watch` is called before the first step, after the steps that it asks for, and at the end;
    it must not change the model or the random-number state. `resume` continues from the last checkpoint. Ctrl-C saves
    and ends the run. A loss that is not finite is a TrainingError. Of several processes (`context.group`) rank 0
    decides and writes the files; `report`, `sample` and `watch` are for it alone, and `plan` is called by all.
    """
    dataset.require_window(model_config.block_size)
    out_dir, device, group = context.out_dir, context.device, context.group
    if not resume and group.first and holds_run(out_dir):
        raise ConfigError(f"out_dir={str(out_dir)!r} already holds a run: resume it, or choose another")
    progress = Progress()

    def warn(message: str) -> None:
        report({"event": "warning", "step": progress.step, "message": message})

    with catch_interrupts(announce=None if group.first else lambda text: None) as interrupted:

        def check() -> None:
            if group.any(bool(interrupted())):
                raise Interrupted

        session = build_session(model_config, config, context, initialize, warn)
        model, optimizer, scaler = session.model, session.optimizer, session.scaler
        if resume and group.first:
            progress = restore_training(
                out_dir, model, dataset.tokenizer, optimizer, scaler, device, dataset.sha256, config
            )
        progress = share_training(group, model, optimizer, scaler, progress)
        session = shard_session(session, context) if context.sharded else session
        step, compiled = build_step(session, dataset.train, config, context, warn, check)
        checkpoint = find_checkpoint(out_dir, "last") if resume and group.first else None
        report(describe_start(model, config, context, dataset, progress.step, compiled))

        started = time.perf_counter()
        windows = config.eval_iters * config.batch_size
        evaluate = Evaluator(dataset, config.batch_size, windows, context.dtype, report, sample, check, group)
        step_tokens, schedule = tokens_per_step(model_config, config), learning_rate_schedule(config)
        # Losses since the last `step` event stay on the device: reading one waits until the GPU has finished its work.
        interval = min(context.log_interval, config.eval_interval, LONGEST_INTERVAL)
        losses, norms = torch.zeros(2, interval, device=device)
        reason = "finished"

        def evaluate_now() -> bool:
            nonlocal reason
            try:
                whole = whole_model(session, config, context)
                return evaluate(whole, progress, lambda: time.perf_counter() - started)
            except Interrupted:
                reason = "interrupted"
                return False

        def save(best: bool) -> Path | None:
            if not group.first and session.sharding is None:
                return None
            weights = whole_model(session, config, context)
            gather = session.sharding.whole if session.sharding is not None else own_state
            tensors, metadata = training_state(optimizer, scaler, progress, device, config, gather)
            if not group.first:
                return None
            val_loss = progress.val_loss if progress.evaluated_step == progress.step else None
            return save_checkpoint(
                out_dir, weights, dataset.tokenizer, step=progress.step, val_loss=val_loss, best=best,
                training_tensors=tensors, training_metadata=metadata, text_sha256=dataset.sha256,
            )  # fmt: skip

        def look(due: bool, steps: int) -> None:
            nonlocal watch_at
            due = due and watch is not None
            if group.any(due) if context.sharded else due:  # all processes gather the weights
                whole = whole_model(session, config, context)
                watch_at = watch(whole, progress, steps) if watch is not None else watch_at

        saved_step = progress.step if resume else None
        if is_pending(progress, config):  # before the first step, or where an evaluation was interrupted
            best = evaluate_now()
            if best and resume and group.first:
                make_last_best(out_dir)
            if reason == "interrupted" and not resume:
                checkpoint, saved_step = save(best), progress.step
        config = replan(config, plan, progress.step, report)
        schedule = learning_rate_schedule(config)
        logged, log_started = progress.step, time.perf_counter()
        watch_at = progress.step
        model.train()
        while progress.step < config.max_iters and reason == "finished":
            look(progress.step >= watch_at, config.max_iters)
            set_learning_rate(optimizer, schedule(progress.step))
            generators = rng_state(device) if config.gradient_accumulation_steps > 1 else None
            try:
                loss, norm = step(progress.step)  # batch, forward, backward, clipping, update: step.py
                losses[progress.step - logged], norms[progress.step - logged] = loss, norm
                progress.step += 1
                reason = group.decide("interrupted" if interrupted() else stop() or "finished")
            except Interrupted:  # between two micro-batches
                assert generators is not None
                abandon_step(session, device, generators)
                reason = "interrupted"

            at_end = progress.step == config.max_iters or reason not in ("finished", "interrupted")
            evaluating = at_end or (progress.step > logged and progress.step % config.eval_interval == 0)
            saving = evaluating or reason == "interrupted"
            steps = progress.step - logged
            if not saving and steps < interval:
                continue

            if steps:
                losses[:steps] = group.mean(losses[:steps])
                check_finite(losses[:steps].tolist(), norms[:steps].tolist(), logged, schedule, scaler.is_enabled())
                now = time.perf_counter()
                report(
                    {
                        "event": "step",
                        "step": progress.step,
                        "train_loss": losses[:steps].mean().item(),
                        "learning_rate": schedule(progress.step - 1),
                        "gradient_norm": norms[steps - 1].item(),
                        "tokens_per_second": steps * step_tokens / (now - log_started),
                        "seconds": now - started,
                    }
                )
                if not at_end:
                    config = replan(config, plan, progress.step, report)
            best = evaluating and evaluate_now()
            if config.patience and progress.evaluations_since_best >= config.patience and not at_end:
                reason = "patience"
            if saving and progress.step != saved_step:
                checkpoint, saved_step = save(best), progress.step
            if evaluating and not at_end:
                config = replan(config, plan, progress.step, report)
            schedule = learning_rate_schedule(config)
            model.train()
            logged, log_started = progress.step, time.perf_counter()
        look(reason != "interrupted", progress.step)

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


def is_pending(progress: Progress, config: TrainConfig) -> bool:
    """Return whether the evaluation at this step is due and was not completed."""
    due = progress.step % config.eval_interval == 0 or progress.step >= config.max_iters
    return due and progress.evaluated_step != progress.step


def replan(config: TrainConfig, plan: Plan | None, step: int, report: Report) -> TrainConfig:
    """Return the recipe with max_iters = max(step + 1, plan(step)); report a `plan` event if it changed.

    Replanning is bit-identical to resuming with the new `max_iters`.
    """
    if plan is None or step >= config.max_iters:
        return config
    steps = max(step + 1, plan(step))
    if steps != config.max_iters:
        report({"event": "plan", "step": step, "max_iters": steps})
    return replace(config, max_iters=steps)


def check_finite(
    losses: list[float], norms: list[float], first_step: int, schedule: Callable[[int], float], scaled: bool
) -> None:
    """Raise TrainingError at the first loss or gradient norm that is not finite, with what to try.

    If losses are `scaled` (float16), an infinite gradient only means that the scaler skips this step.
    """
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=first_step):
        if not math.isfinite(loss) or (not scaled and not math.isfinite(norm)):
            raise TrainingError(
                f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
                f"{schedule(step):.3g}; try a lower learning_rate, more warmup_iters or dtype=float32 "
                f"(checkpoints saved before are unchanged)"
            )
