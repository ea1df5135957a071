"""Measure the seconds of real training steps and evaluations on this machine, with temporary models."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quill.generation.sample import sample_function
from quill.runs.session import resolve
from quill.runs.settings import Settings, build_configs

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step, and of an evaluation with its sample and its checkpoint."""

    step: float
    evaluation: float


def probe_speed(settings: Settings, dataset: AnyDataset, probe_seconds: float, *, evaluate: bool = True) -> Speed:
    """Return the seconds of a step, and with `evaluate` of an evaluation, measured for about `probe_seconds`.

    The steps are those of the run itself (training/setup.py). The global RNG state is left untouched.
    """
    from quill.checkpoints.run_folder import save_checkpoint
    from quill.planning.timing import keep_rng_state, now
    from quill.training.evaluator import Evaluator
    from quill.training.setup import build_session, build_step
    from quill.training.state import Progress, training_state

    model_config, config, run_settings = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    context = resolve(run_settings)
    device = context.device
    with keep_rng_state(device):
        session = build_session(model_config, config, context)
        step, _ = build_step(session, dataset.train, config, context, warn=lambda message: None)
        times: list[float] = []
        started = now(device)
        while len(times) < 6 or (now(device) - started < probe_seconds and len(times) < 200):
            before = now(device)
            step(len(times))
            times.append(now(device) - before)
        seconds = statistics.median(times[len(times) // 3 :])  # the first ones also allocate memory and choose kernels
        if not evaluate:
            return Speed(seconds, 0.0)
        before = time.perf_counter()
        sample = sample_function(dataset, run_settings.sample_tokens, config.seed)
        limit = config.eval_iters * config.batch_size
        silent = lambda *_: None  # noqa: E731
        Evaluator(dataset, config.batch_size, limit, context.dtype, silent, sample, silent)(
            session.model, Progress(), time.perf_counter
        )
        tensors, metadata = training_state(session.optimizer, session.scaler, Progress(), device, config)
        with tempfile.TemporaryDirectory(prefix="quill-", ignore_cleanup_errors=True) as folder:
            save_checkpoint(
                folder, session.model, dataset.tokenizer, step=0, val_loss=None, best=True, training_tensors=tensors,
                training_metadata=metadata,
            )  # fmt: skip
        return Speed(seconds, time.perf_counter() - before)
