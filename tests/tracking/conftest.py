"""Events of a short run, as `train()` reports them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

Event = dict[str, Any]


class Events:
    """Makes events. `run` is a short run with everything in it."""

    def __init__(self) -> None:
        self.start: Event = {
            "event": "start", "step": 0, "max_iters": 100, "parameters": 1_234_567,
            "parameters_without_positions": 1_200_000, "device": "cpu (2 threads)", "dtype": "float32",
            "compile": False, "dataset": "mine", "corpus_note": "my own words", "vocab_size": 65,
            "train_tokens": 9000, "val_tokens": 1000, "tokens_per_step": 512, "out_dir": "out",
        }  # fmt: skip

    @staticmethod
    def step(number: int, loss: float | None = 2.0, seconds: float | None = None) -> Event:
        return {
            "event": "step", "step": number, "train_loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0,
            "tokens_per_second": 1000.0, "seconds": number / 10 if seconds is None else seconds,
        }  # fmt: skip

    @staticmethod
    def evaluation(number: int, loss: float, best: bool = True, seconds: float | None = None) -> Event:
        return {
            "event": "evaluation", "step": number, "train_loss": loss - 0.1, "val_loss": loss,
            "bits_per_character": 3.0, "val_tokens": 1000, "whole_split": True, "best": best,
            "seconds": number / 10 if seconds is None else seconds,
        }  # fmt: skip

    @staticmethod
    def sample(number: int, text: str) -> Event:
        return {"event": "sample", "step": number, "text": text}

    @staticmethod
    def warning(number: int, message: str) -> Event:
        return {"event": "warning", "step": number, "message": message}

    @staticmethod
    def plan(number: int, max_iters: int) -> Event:
        return {"event": "plan", "step": number, "max_iters": max_iters}

    @staticmethod
    def end(number: int, reason: str = "finished", best: float | None = 2.5) -> Event:
        return {
            "event": "end", "step": number, "reason": reason, "best_step": number, "best_val_loss": best,
            "seconds": number / 10, "checkpoint": "out/checkpoints/step-000100",
        }  # fmt: skip

    @property
    def run(self) -> list[Event]:
        return [
            self.start, self.evaluation(0, 4.2), self.sample(0, "xq\n"), self.step(50), self.evaluation(50, 2.5),
            self.sample(50, "the king"), self.end(50),
        ]  # fmt: skip

    @staticmethod
    def send(tracker: Callable[[Event], object], events: Iterable[Event]) -> None:
        for event in events:
            tracker(event)


@pytest.fixture
def events() -> Events:
    return Events()
