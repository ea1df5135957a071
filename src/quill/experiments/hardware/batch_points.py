"""Measurements of the batch experiment: texts generated together, and windows trained on together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from quill.engines.request import Request, SamplingConfig
from quill.experiments.hardware.clock import fastest, rounds
from quill.experiments.hardware.roofs import engine_peak, make_numba_engine, product_peak, read_speed
from quill.experiments.hardware.work import (
    BYTES,
    Work,
    attention_work,
    linear_weights,
    linear_work,
    training_work,
)
from quill.generation.batch_generator import BatchGenerator
from quill.model.config import ModelConfig
from quill.planning.timing import keep_rng_state, take_step
from quill.training.config import TrainConfig
from quill.training.context import resolve_context
from quill.training.setup import build_session, train_step


@dataclass(frozen=True)
class Speeds:
    """Seconds of a step over the batch, in each round, and as predicted from the machine's two roofs."""

    batches: tuple[int, ...]
    seconds_BR: np.ndarray
    predicted_B: np.ndarray
    tokens: int
    """tokens of a step for each text or window in the batch"""

    @property
    def throughput_BR(self) -> np.ndarray:
        """Tokens a second."""
        return self.tokens * np.array(self.batches)[:, None] / self.seconds_BR


@dataclass(frozen=True)
class Writing:
    """Texts generated together: how fast, and whether each is what it is alone."""

    speeds: Speeds
    same_BN: np.ndarray
    """for each batch size and text: 1 if its tokens are those that it has alone, 0 if not, NaN if not generated"""


def requests_of(config: ModelConfig, count: int, prompt: int, new_tokens: int, seed: int) -> list[Request]:
    """Return requests with different prompts of random tokens."""
    generator = np.random.default_rng(seed)
    prompts = generator.integers(0, config.vocab_size, (count, prompt)).tolist()
    sampling = SamplingConfig(temperature=1.0)
    return [Request(tuple(each), new_tokens, sampling, seed=row) for row, each in enumerate(prompts)]


def generate(generator: BatchGenerator, requests: list[Request]) -> list[list[int]]:
    """Generate all texts together, and return the tokens of each."""
    tokens: list[list[int]] = [[] for _ in requests]
    for row, event in generator.follow(requests):
        if event.token is not None:
            tokens[row].append(event.token.token_id)
    return tokens


def measure_writing(
    config: ModelConfig,
    batches: tuple[int, ...],
    new_tokens: int,
    count: int,
    seed: int,
    on_round: Callable[[int, int], None],
) -> Writing:
    """Generate texts alone and together, in turn. The prompt of 16 tokens is part of the time."""
    prompt, most = 16, max(batches)
    engine = make_numba_engine(config, None, most, seed)
    generator, requests = BatchGenerator(engine), requests_of(config, most, prompt, new_tokens, seed)
    alone = [generate(generator, [request])[0] for request in requests]
    same_BN = np.full((len(batches), most), np.nan)
    for index, batch in enumerate(batches):
        together = generate(generator, requests[:batch])
        same_BN[index, :batch] = [a == b for a, b in zip(alone, together, strict=False)]
    tasks = {
        str(batch): (lambda batch=batch: fastest(lambda: generate(generator, requests[:batch]), 1) / new_tokens)
        for batch in batches
    }
    taken = rounds(tasks, count, on_round)
    peak, bandwidth = roofs_of(config)
    works = [linear_work(config, b) + attention_work(config, b, prompt + new_tokens // 2) for b in batches]
    predicted = [work.seconds(peak, bandwidth) for work in works]
    seconds_BR = np.stack([taken[str(batch)] for batch in batches])
    return Writing(Speeds(batches, seconds_BR, np.array(predicted), 1), same_BN)


def measure_training(
    config: ModelConfig, batches: tuple[int, ...], count: int, seed: int, on_round: Callable[[int, int], None]
) -> Speeds:
    """Take training steps with so many windows each, in turn."""
    recipe, context = TrainConfig(seed=seed), resolve_context(device="cpu", dtype="float32", compile=False)
    with keep_rng_state(context.device):
        session = build_session(config, recipe, context)
    step = train_step(session, session.model, recipe, context)

    def measure(batch: int) -> float:
        with keep_rng_state(context.device):
            torch.manual_seed(seed)
            return sum(take_step(step, batch))

    taken = rounds({str(batch): (lambda batch=batch: measure(batch)) for batch in batches}, count, on_round)
    peak, bandwidth = roofs_of(config)
    works: list[Work] = [training_work(config, session.model.count_parameters(), batch) for batch in batches]
    predicted = np.array([work.seconds(peak, bandwidth) for work in works])
    return Speeds(batches, np.stack([taken[str(batch)] for batch in batches]), predicted, config.block_size)


def roofs_of(config: ModelConfig) -> tuple[float, float]:
    """Return operations a second in float32, and bytes a second for as many bytes as the weights have."""
    peaks, reads = [product_peak(), engine_peak(None)], read_speed(linear_weights(config) * BYTES["float32"])
    return max(measure() for measure in peaks for _ in range(3)), max(reads() for _ in range(3))
