"""Measurements of the roofline experiment: linear maps, attention, prompts and training steps of one model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quill.engines.numba_engine import NumbaEngine
from quill.experiments.hardware.clock import fastest, rounds
from quill.experiments.hardware.roofs import (
    engine_peak,
    make_numba_engine,
    product_peak,
    read_prompts,
    read_speed,
)
from quill.experiments.hardware.work import (
    BYTES,
    Work,
    attention_work,
    linear_weights,
    linear_work,
    prefill_work,
    training_work,
)
from quill.model.config import ModelConfig
from quill.planning.timing import keep_rng_state, take_step
from quill.training.config import TrainConfig
from quill.training.context import resolve_context
from quill.training.setup import build_session, train_step

FORMATS: dict[str, str | None] = {"float32": None, "int8": "int8"}

STEPS = 8
"""Tokens that are generated in one measurement of linear maps: so few that attention takes almost no time."""


@dataclass(frozen=True)
class Settings:
    """What is measured: the model, the batch sizes, and how often."""

    config: ModelConfig
    batches: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    rounds: int = 12
    training_windows: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """One piece of work in one number format, and how long it took in each round."""

    name: str
    dtype: str
    rows: int
    work: Work
    seconds_R: np.ndarray

    @property
    def speed_R(self) -> np.ndarray:
        """Operations a second in each round."""
        return self.work.operations / self.seconds_R


@dataclass(frozen=True)
class Roof:
    """Both limits for one number format, in each round: operations and bytes a second."""

    peak_R: np.ndarray
    bandwidth_R: np.ndarray

    @property
    def peak(self) -> float:
        """The highest operations a second of all rounds."""
        return float(self.peak_R.max())

    @property
    def bandwidth(self) -> float:
        """The highest bytes a second of all rounds."""
        return float(self.bandwidth_R.max())

    def knee(self, dtype: str) -> float:
        """Return the batch size from which arithmetic takes longer than reading the weights."""
        return self.peak / self.bandwidth * BYTES[dtype] / 2


def measure(settings: Settings, on_round: Callable[[int, int], None]) -> tuple[dict[str, Roof], list[Point]]:
    """Return the roof of each number format, and all points."""
    config, works = settings.config, dict[tuple[str, str, int], Work]()
    tasks: dict[Any, Callable[[], float]] = {("product", "float32", 0): product_peak()}
    for dtype, quantization in FORMATS.items():
        engine = make_numba_engine(config, quantization, max(settings.batches), settings.seed)
        tasks["peak", dtype, 0] = engine_peak(quantization)
        tasks["bandwidth", dtype, 0] = read_speed(linear_weights(config) * BYTES[dtype])
        for batch in settings.batches:
            works["linear", dtype, batch] = linear_work(config, batch, dtype)
            tasks["linear", dtype, batch] = decoding(engine, batch)
        length = config.block_size - 1
        works["prompt", dtype, length] = prefill_work(config, length, dtype)
        tasks["prompt", dtype, length] = reading(engine, length)
    batch = min(16, max(settings.batches))
    engine = make_numba_engine(config, None, batch, settings.seed)
    start = config.block_size - STEPS - 1
    works["attention", "float32", batch] = attention_work(config, batch, start + STEPS // 2)
    tasks["late", "float32", batch] = decoding(engine, batch, start)
    parameters, tasks["training", "float32", settings.training_windows] = training(settings)
    works["training", "float32", settings.training_windows] = training_work(
        config, parameters, settings.training_windows
    )
    taken = rounds(tasks, settings.rounds, on_round)
    # What a step late in the text takes longer than one at its beginning is attention.
    taken["attention", "float32", batch] = taken["late", "float32", batch] - taken["linear", "float32", batch]
    roofs = {dtype: Roof(taken["peak", dtype, 0], taken["bandwidth", dtype, 0]) for dtype in FORMATS}
    product_R = taken["product", "float32", 0]
    if product_R.max() > roofs["float32"].peak:
        roofs["float32"] = Roof(product_R, roofs["float32"].bandwidth_R)
    return roofs, [Point(*key, work, taken[key]) for key, work in works.items()]


def decoding(engine: NumbaEngine, batch: int, start: int = 1) -> Callable[[], float]:
    """Return a measurement of the seconds of one step of `batch` texts that have `start` tokens each."""
    prompt = tuple(np.random.default_rng(0).integers(0, engine.config.vocab_size, start).tolist())

    def measure() -> float:
        read_prompts(engine, [prompt] * batch)
        engine.decode(range(batch), 1)

        def decode() -> None:
            for slot in range(batch):
                engine.sequences[slot].position = start
            engine.decode(range(batch), STEPS)

        return fastest(decode, 3) / STEPS

    return measure


def reading(engine: NumbaEngine, length: int) -> Callable[[], float]:
    """Return a measurement of the seconds of reading one prompt."""
    prompt = tuple(np.random.default_rng(1).integers(0, engine.config.vocab_size, length).tolist())
    return lambda: fastest(lambda: read_prompts(engine, [prompt]), 2)


def training(settings: Settings) -> tuple[int, Callable[[], float]]:
    """Return the number of weights, and a measurement of the seconds of a training step in float32."""
    config, context = TrainConfig(seed=settings.seed), resolve_context(device="cpu", dtype="float32", compile=False)
    with keep_rng_state(context.device):
        session = build_session(settings.config, config, context)
    step = train_step(session, session.model, config, context)

    def measure() -> float:
        with keep_rng_state(context.device):
            torch.manual_seed(settings.seed)
            return sum(take_step(step, settings.training_windows))

    return session.model.count_parameters(), measure


def knees_R(points: list[Point], dtype: str) -> np.ndarray:
    """Return the measured knee of linear maps in each round.

    Few texts take the time of reading the weights, t(1), and many a time in proportion to their number. Both lines
    meet at t(1) / slope, where the slope is that between the two largest batches at least a factor of 2 apart.
    """
    lines = sorted((p for p in points if p.name == "linear" and p.dtype == dtype), key=lambda p: p.rows)
    last = lines[-1]
    before = max((p for p in lines if 2 * p.rows <= last.rows), key=lambda p: p.rows, default=lines[0])
    slope_R = (last.seconds_R - before.seconds_R) / (last.rows - before.rows)
    return lines[0].seconds_R / np.maximum(slope_R, 1e-6 * lines[0].seconds_R)  # noise may make it 0 or less
