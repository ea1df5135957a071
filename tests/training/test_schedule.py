"""The learning rate goes up in a line, down half a cosine, and stays at its floor."""

import math

import pytest

from quill.training.config import TrainConfig
from quill.training.schedule import cosine_decay, learning_rate_at

SHAPE = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_iters": 10, "decay_iters": 110}


def test_the_curve_at_its_corners() -> None:
    assert cosine_decay(0, **SHAPE) == pytest.approx(1 / 11)
    assert cosine_decay(9, **SHAPE) == pytest.approx(10 / 11)
    assert cosine_decay(10, **SHAPE) == 1.0
    assert cosine_decay(60, **SHAPE) == pytest.approx(0.55)
    assert cosine_decay(35, **SHAPE) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert cosine_decay(110, **SHAPE) == cosine_decay(10_000, **SHAPE) == 0.1


def test_it_rises_and_then_never_rises_again() -> None:
    rates = [cosine_decay(step, **SHAPE) for step in range(150)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_a_recipe_decays_to_a_tenth_by_its_last_step_unless_told_otherwise() -> None:
    config = TrainConfig(learning_rate=1e-3, warmup_iters=0, max_iters=100)
    assert learning_rate_at(100, config) == pytest.approx(1e-4)
    level = TrainConfig(learning_rate=1e-3, min_lr=1e-3, warmup_iters=0, max_iters=100)
    assert {learning_rate_at(step, level) for step in range(100)} == {1e-3}
    assert learning_rate_at(5, TrainConfig(warmup_iters=500, max_iters=10)) < 1e-3, "a warm-up may outlast the run"
