"""The models of the induction experiment, the strings that they are trained on, and their training.

A string is a prefix of 8 to 16 different random tokens, repeated to the end. The first time nothing can be predicted;
from then on everything can, by finding the last token's earlier place and copying what followed. The length of the
prefix differs from string to string, so no fixed distance works, and all tokens are equally frequent.

Shapes: B strings, T time, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quill.evaluation.loss import cross_entropy
from quill.lab.roles.patterns import Score, induction_pattern, previous_pattern
from quill.lab.subject import inference
from quill.lab.trace import record
from quill.model.build import Model
from quill.model.config import ModelConfig, ModernConfig
from quill.optim.optimizer import set_learning_rate
from quill.training.config import TrainConfig
from quill.training.context import resolve_context
from quill.training.schedule import learning_rate_schedule
from quill.training.setup import build_session, train_step

SCORED = 64
"""Held-out strings by which heads are scored."""
IGNORED = -100
"""A target that cross-entropy leaves out."""


class Strings(NamedTuple):
    """Repeated random strings, and how long the part of each is that repeats."""

    tokens_BT: Tensor
    period_B: Tensor

    @property
    def second_BT(self) -> Tensor:
        """True for the targets (tokens 1 to T - 1) that an earlier token tells: those after the first repeated one."""
        positions_T = torch.arange(1, self.tokens_BT.size(1))
        return positions_T > self.period_B[:, None]


@dataclass(frozen=True)
class Curve:
    """One model over its training: loss and head scores at some steps, on the same held-out strings."""

    steps: tuple[int, ...]
    first_losses: np.ndarray
    """mean loss where nothing can be predicted"""
    second_losses: np.ndarray
    """mean loss where everything can be copied"""
    final_losses_N: np.ndarray
    """at the end, for each string: its loss where everything can be copied"""
    induction_SLH: np.ndarray
    """mean attention to the tokens after earlier occurrences of the present one"""
    previous_SLH: np.ndarray
    """mean attention to the token before"""


def repeated_strings(vocab_size: int, length: int, count: int, generator: torch.Generator) -> Strings:
    """Return repeated strings of different tokens, whose period is from a half of the vocabulary to all of it."""
    period_B = torch.randint(vocab_size // 2, vocab_size + 1, (count,), generator=generator)
    order_BV = torch.rand(count, vocab_size, generator=generator).argsort(1)
    index_BT = torch.arange(length)[None] % period_B[:, None]
    return Strings(order_BV.gather(1, index_BT), period_B)


def configurations(vocab_size: int, length: int, width: int) -> dict[str, ModelConfig]:
    """Return the shapes that are compared: one recipe, with one layer, two, and one with a table of pairs."""
    one = ModernConfig(
        vocab_size=vocab_size, block_size=length, n_layer=1, n_head=2, n_embd=width, dropout=0.0, ngram=1,
        ngram_dropout=0.0,
    )  # fmt: skip
    return {"one layer": one, "two layers": replace(one, n_layer=2), "one layer and pairs": replace(one, ngram=2)}


def head_scores(model: Model, strings: Strings) -> tuple[np.ndarray, np.ndarray]:
    """Return (induction_LH, previous_LH): mean attention from the repeated part of the first `SCORED` strings.

    Induction is attention to any token that came after an earlier occurrence of the present one.
    """
    weights: list[Tensor] = []

    class Recorder:
        def wants(self, name: str) -> bool:
            return name.endswith("attention.weights_BHTS")

        def add(self, name: str, tensor: Tensor) -> None:
            if self.wants(name):
                weights.append(tensor)

    tokens_BT = strings.tokens_BT[:SCORED]
    record(model, tokens_BT, Recorder())
    weights_BLHTS = torch.stack(weights, 1).numpy()
    induction, previous = (Score(np.zeros(weights_BLHTS.shape[1:3])) for _ in range(2))
    for weights_LHTS, tokens_T, period in zip(
        weights_BLHTS, tokens_BT.numpy(), strings.period_B.tolist(), strict=False
    ):
        repeated_T = np.arange(len(tokens_T)) >= period
        induction.add(weights_LHTS, induction_pattern(tokens_T), repeated_T)
        previous.add(weights_LHTS, previous_pattern(tokens_T), repeated_T)
    return induction.mean_LH, previous.mean_LH


def string_losses(model: Model, strings: Strings) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean loss of each string on its first occurrence, and where it repeats."""
    with inference(model):
        logits_BTV = model(strings.tokens_BT[:, :-1])
    loss_BT = cross_entropy(logits_BTV, strings.tokens_BT[:, 1:], reduction="none").view(len(logits_BTV), -1).double()
    second_BT = strings.second_BT
    first_B = (loss_BT * ~second_BT).sum(1) / (~second_BT).sum(1)
    return first_B.numpy(), ((loss_BT * second_BT).sum(1) / second_BT.sum(1)).numpy()


def train_on_strings(
    config: ModelConfig,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    held_out: Strings,
    points: int,
    on_step: Callable[[], None],
) -> Curve:
    """Train a model to copy, and return its losses and head scores at `points` steps or fewer.

    Only what repeats is a target: the rest of a string is random, and would teach the model its training strings. The
    global RNG state does not change.
    """
    recipe = TrainConfig(
        max_iters=steps, batch_size=batch_size, learning_rate=learning_rate, warmup_iters=min(50, steps // 4),
        weight_decay=0.0, seed=seed,
    )  # fmt: skip
    context = resolve_context(device="cpu", dtype="float32", compile=False)
    with torch.random.fork_rng(devices=[]):
        session = build_session(config, recipe, context)
        model = session.model
        step, schedule = train_step(session, model, recipe, context), learning_rate_schedule(recipe)
        generator = torch.Generator().manual_seed(seed)
        measured = sorted({round(each) for each in np.linspace(0, steps, points)})
        rows = []
        for number in range(steps + 1):
            if number in measured:
                first_N, second_N = string_losses(model, held_out)
                rows.append((first_N.mean(), second_N.mean(), *head_scores(model, held_out)))
            if number == steps:
                break
            model.train()
            set_learning_rate(session.optimizer, schedule(number))
            strings = repeated_strings(config.vocab_size, config.block_size, batch_size, generator)
            targets_BT = strings.tokens_BT[:, 1:].masked_fill(~strings.second_BT, IGNORED)
            step(strings.tokens_BT[:, :-1], targets_BT)
            on_step()
    first, second, induction, previous = (np.array(values) for values in zip(*rows, strict=True))
    return Curve(tuple(measured), first, second, string_losses(model, held_out)[1], induction, previous)
