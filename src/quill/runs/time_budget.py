"""A run of so many minutes: measure the machine, choose a recipe, and keep to the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quill.generation.sample import sampler
from quill.runs.settings import build_configs, default_settings

if TYPE_CHECKING:
    from quill.data.dataset import Dataset

MARGIN = 0.97  # of the time: the last stretch may be slower than the one before it

EVALUATIONS = 6

MOST_LOOKING = 0.25  # of the time: evaluations, samples and checkpoints

FEWEST_STEPS, MOST_STEPS = 20, 1_000_000


@dataclass(frozen=True)
class Speed:
    """Seconds of a training step, and of an evaluation with its sample and its checkpoint."""

    step: float
    look: float


class Pace:
    """The `plan` of a run that has so many seconds: how many steps fit, if it goes on as since it was last asked.

    It is asked after each evaluation, so their time is part of the pace; `look`, the seconds of the last one, is kept
    free besides, because the steps before that one may be few. `steps` is the plan until there is a pace.
    """

    def __init__(
        self, started: float, seconds: float, steps: int, look: float, clock: Callable[[], float] = time.monotonic
    ):
        self.ends, self.steps, self.clock = started + MARGIN * seconds - look, steps, clock
        self.asked_at: tuple[int, float] | None = None  # after how many steps, and when

    def __call__(self, step: int) -> int:
        """Return how many steps the run shall have in all, of which so many are done."""
        now = self.clock()
        if self.asked_at:
            step_before, before = self.asked_at
            self.steps = step + int((self.ends - now) / (now - before) * (step - step_before))
        self.asked_at = (step, now)
        return self.steps


def fit_to_minutes(
    dataset: Dataset, minutes: float, asked: dict[str, Any], *, evaluations: int = EVALUATIONS
) -> tuple[dict[str, Any], Speed]:
    """Return the flat configuration of a run of so many minutes on this text and machine, and how quick that is.

    `asked` holds what was set by hand, and stays. The time is that of training, evaluations and samples; finding out
    how quick the machine is comes off it.
    """
    from quill.planning.recipe import PROBE, RECIPE, choose_recipe, choose_size, remembering

    started = time.monotonic()
    seconds = minutes * 60
    defaults = default_settings(asked.get("architecture", RECIPE["architecture"]))
    patience = min(3.0, seconds / 50)
    probe = defaults | RECIPE | PROBE.settings() | {"device": asked.get("device", "auto")}
    probed = measure(probe, dataset, patience, look=False)
    recipe = choose_recipe(seconds / probed.step, len(dataset.train))
    settings = defaults | {name: value for name, value in recipe.items() if name in defaults} | asked
    speed = measure(settings, dataset, patience, look=evaluations > 0)
    left = seconds - (time.monotonic() - started)
    settings |= fit_steps(left, speed, evaluations) | asked
    windows = settings["max_iters"] * settings["batch_size"] * settings["gradient_accumulation_steps"]
    size = choose_size(seconds / probed.step, len(dataset.train))
    recipe = remembering(size, windows * settings["block_size"] / len(dataset.train))  # how often it reads is known now
    return settings | {name: value for name, value in recipe.items() if name in defaults} | asked, speed


def fit_steps(seconds: float, speed: Speed, evaluations: int) -> dict[str, int]:
    """Return how many steps fit the time, and after how many to evaluate: so often, or less where little time is."""
    look = 1.5 * speed.look  # pictures and displays come with some of them
    if look:
        evaluations = max(1, min(evaluations, int(MOST_LOOKING * seconds / look) - 1))  # one more comes at the start
    steps = int((seconds * MARGIN - (evaluations + 1) * look) / speed.step)
    steps = max(FEWEST_STEPS, min(MOST_STEPS, steps))
    return {"max_iters": steps, "eval_interval": max(1, -(-steps // max(1, evaluations)))}


def measure(settings: dict[str, Any], dataset: Dataset, patience: float, *, look: bool = True) -> Speed:
    """Return how quick steps are, and if asked an evaluation with all that goes with it, in some `patience` seconds."""
    import statistics
    import tempfile

    import torch

    from quill.checkpoints.run_folder import save_checkpoint
    from quill.device import resolve_device, resolve_dtype
    from quill.planning.timing import Trial
    from quill.training.loop import evaluate, fetch_batch
    from quill.training.state import Progress, training_state

    model_config, config = build_configs(settings, vocab_size=dataset.tokenizer.vocab_size)
    device = resolve_device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        trial = Trial(model_config, config, device)
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < 6 or (time.perf_counter() - started < patience and len(times) < 200):
            before = time.perf_counter()
            batch = fetch_batch(dataset, model_config, config, len(times), device)
            for inputs_BT, targets_BT in zip(*(each.split(config.batch_size) for each in batch), strict=True):
                trial.step(inputs_BT, targets_BT)
            times.append(time.perf_counter() - before)
        step = statistics.median(times[len(times) // 3 :])  # the first ones also pay for memory and kernels that stay
        if not look:
            return Speed(step, 0.0)
        sample = sampler(dataset, config.sample_tokens, config.seed)
        before = time.perf_counter()
        dtype = resolve_dtype(config.dtype, device)
        evaluate(trial.model, config, dataset, Progress(), dtype, lambda event: None, sample, before)
        unscaled = torch.amp.GradScaler(device.type, enabled=False)
        tensors, metadata = training_state(trial.optimizer, unscaled, Progress(), device)
        with tempfile.TemporaryDirectory(prefix=".quill-", dir=".", ignore_cleanup_errors=True) as folder:
            save_checkpoint(
                folder, trial.model, dataset.tokenizer, step=0, val_loss=None, best=True, training_tensors=tensors,
                training_metadata=metadata,
            )  # fmt: skip
        return Speed(step, time.perf_counter() - before)


def describe(settings: dict[str, Any], minutes: float) -> str:
    """Return in one line what was chosen."""
    s = settings
    return (
        f"for {minutes:g} minute{'s' * (minutes != 1)}: {s['architecture']} model, "
        f"{s['n_layer']} layer{'s' * (s['n_layer'] != 1)}, {s['n_embd']} wide, "
        f"context {s['block_size']}, batch {s['batch_size']}, {s['max_iters']:,} steps"
    )
