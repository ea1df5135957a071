"""The learning rate goes up in a line, down half a cosine, and stays at its floor."""

import math

import pytest

from quill.training.config import TrainConfig
from quill.training.schedule import cosine_decay, learning_rate_schedule, linear_decay

SHAPE = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_iters": 10, "decay_iters": 110}


def test_the_cosine_schedule_has_the_right_values_at_its_corners() -> None:
    assert cosine_decay(0, **SHAPE) == pytest.approx(1 / 11)
    assert cosine_decay(9, **SHAPE) == pytest.approx(10 / 11)
    assert cosine_decay(10, **SHAPE) == 1.0
    assert cosine_decay(60, **SHAPE) == pytest.approx(0.55)
    assert cosine_decay(35, **SHAPE) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert cosine_decay(110, **SHAPE) == cosine_decay(10_000, **SHAPE) == 0.1


def test_the_learning_rate_never_rises_after_the_warm_up() -> None:
    rates = [cosine_decay(step, **SHAPE) for step in range(150)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_a_recipe_decays_to_a_tenth_by_its_last_step_unless_told_otherwise() -> None:
    config = TrainConfig(learning_rate=1e-3, warmup_iters=0, max_iters=100)
    assert learning_rate_schedule(config)(100) == pytest.approx(1e-4)
    level = TrainConfig(learning_rate=1e-3, min_lr=1e-3, warmup_iters=0, max_iters=100)
    assert {learning_rate_schedule(level)(step) for step in range(100)} == {1e-3}
    assert learning_rate_schedule(TrainConfig(warmup_iters=500, max_iters=10))(5) < 1e-3, (
        "a warm-up may outlast the run"
    )


def test_the_wsd_schedule_has_the_right_values_at_its_corners() -> None:
    shape = {**SHAPE, "cooldown_iters": 50}
    assert linear_decay(0, **shape) == pytest.approx(1 / 11)
    assert linear_decay(10, **shape) == linear_decay(60, **shape) == 1.0
    assert linear_decay(85, **shape) == pytest.approx(0.55)
    assert linear_decay(110, **shape) == linear_decay(10_000, **shape) == 0.1


def test_linear_decay_falls_to_zero_from_the_end_of_the_warm_up() -> None:
    config = TrainConfig(learning_rate=1.0, lr_schedule="linear", warmup_iters=10, max_iters=110)
    assert [learning_rate_schedule(config)(step) for step in (10, 60, 109, 110)] == pytest.approx([1.0, 0.5, 0.01, 0.0])
    stays = TrainConfig(learning_rate=1.0, lr_schedule="wsd", cooldown=0.2, warmup_iters=0, max_iters=100)
    assert [learning_rate_schedule(stays)(step) for step in (0, 80, 90, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
