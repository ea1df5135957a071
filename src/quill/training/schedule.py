"""Learning-rate schedules: pure functions of the step, without state and without PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from quill.training.config import TrainConfig


def learning_rate_schedule(config: TrainConfig) -> Callable[[int], float]:
    """Return the function from a step (counted from 0) to the recipe's learning rate.

    It is the rate of AdamW's matrices; the rates of other groups are proportional to it.
    """
    highest, end = config.learning_rate, config.max_iters if config.lr_decay_iters is None else config.lr_decay_iters
    rates: dict[str, Any] = {"learning_rate": highest, "warmup_iters": config.warmup_iters, "decay_iters": end}
    if config.lr_schedule == "cosine":
        lowest = highest / 10 if config.min_lr is None else config.min_lr
        return functools.partial(cosine_decay, min_lr=lowest, **rates)
    cooldown = round(config.cooldown * end) if config.lr_schedule == "wsd" else end
    return functools.partial(linear_decay, min_lr=config.min_lr or 0.0, cooldown_iters=cooldown, **rates)


def cosine_decay(step: int, *, learning_rate: float, min_lr: float, warmup_iters: int, decay_iters: int) -> float:
    """Return the learning rate of this step (counted from 0): linear warm-up, half a cosine down, then constant.

        warm-up:  lr(s) = learning_rate · (s + 1) / (warmup + 1)
        decay:    lr(s) = min_lr + ½ (learning_rate - min_lr) (1 + cos(π (s - warmup) / (decay_iters - warmup)))

    Loshchilov & Hutter 2017 (SGDR), equation 5, one period; the warm-up is that of Goyal et al. 2017, section 2.2.
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    if step >= decay_iters:
        return min_lr
    progress = (step - warmup_iters) / (decay_iters - warmup_iters)
    return min_lr + 0.5 * (learning_rate - min_lr) * (1 + math.cos(math.pi * progress))


def linear_decay(
    step: int, *, learning_rate: float, min_lr: float, warmup_iters: int, decay_iters: int, cooldown_iters: int
) -> float:
    """Return the learning rate of this step (counted from 0): warm-up, constant, linear cool-down, constant.

        decay:    lr(s) = min_lr + (learning_rate - min_lr) · min(1, (decay_iters - s) / cooldown_iters)

    If the cool-down is as long as the run, this is linear decay, to zero if min_lr is 0 (Defazio et al. 2023, "When,
    Why and How Much?"). If it is shorter, this is warm-up, stable, decay (Hu et al. 2024, "MiniCPM", section 4).
    """
    if step < warmup_iters:
        return learning_rate * (step + 1) / (warmup_iters + 1)
    left = (decay_iters - step) / min(cooldown_iters, max(1, decay_iters - warmup_iters))
    return min_lr + (learning_rate - min_lr) * max(0.0, min(1.0, left))
