"""The evaluation of a run: both losses, a sample, and whether the model is the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from quill.data.mixed_dataset import AnyDataset
from quill.data.mixed_tokens import Tokens
from quill.distributed.group import ALONE, Group
from quill.errors import TrainingError
from quill.evaluation.split_loss import Evaluation, evaluate_split
from quill.model.build import Model
from quill.training.events import Report
from quill.training.state import Progress

RISING = 3  # evaluations without a better validation loss before a warning of overfitting

Sample = Callable[[Model], Iterable[str]]
"""Generates a sample with a model: an iterable of its pieces, such as a str."""


class Interrupted(Exception):
    """A signal arrived during a long computation, whose result so far is dropped."""


@dataclass(frozen=True)
class Evaluator:
    """Scores both splits, generates a sample, and reports both as events.

    A validation split of up to `max_windows` windows is scored whole. The training loss is estimated on as many tokens.
    """

    dataset: AnyDataset
    batch_size: int
    max_windows: int
    dtype: torch.dtype
    report: Report
    sample: Sample | None
    check: Callable[[], None]
    """called between batches and between pieces of the sample; raises Interrupted to abandon the evaluation"""
    group: Group = ALONE
    """the processes that share out the batches; rank 0 generates the sample"""

    def __call__(self, model: Model, progress: Progress, seconds: Callable[[], float]) -> bool:
        """Return whether the validation loss is the best so far; `progress` records it.

        `seconds` returns the time since the run began. A loss that is not finite is a TrainingError.
        """
        validation = self._score(model, self.dataset.val, self.max_windows)
        training = self._score(model, self.dataset.train, math.ceil(validation.tokens / model.config.block_size))
        text = "".join(self._pieces(model)) if self.sample is not None and math.isfinite(validation.loss) else None
        if not math.isfinite(validation.loss):
            raise TrainingError(
                f"the validation loss became {validation.loss:.4g} at step {progress.step}: nothing of this step is "
                f"saved; try a lower learning_rate, more warmup_iters or dtype=float32"
            )
        best = progress.record(validation.loss, training.loss)
        self.report(
            {
                "event": "evaluation",
                "step": progress.step,
                "train_loss": training.loss,
                "val_loss": validation.loss,
                "bits_per_character": validation.bits_per_character,
                "val_tokens": validation.tokens,
                "whole_split": validation.whole_split,
                "best": best,
                "seconds": seconds(),
                **({"val_losses": validation.losses} if validation.losses else {}),
            }
        )
        if message := overfitting_warning(progress):
            self.report({"event": "warning", "step": progress.step, "message": message})
        if text is not None:
            self.report({"event": "sample", "step": progress.step, "text": text})
        return best

    def _score(self, model: Model, tokens: Tokens, max_windows: int) -> Evaluation:
        return evaluate_split(
            model,
            tokens,
            self.dataset.tokenizer,
            batch_size=self.batch_size,
            max_windows=max_windows,
            dtype=self.dtype,
            on_progress=lambda share: self.check(),
            group=self.group,
        )

    def _pieces(self, model: Model) -> Iterable[str]:
        assert self.sample is not None
        for piece in self.sample(model):
            if self.group.alone:  # several processes check together, and the others are waiting
                self.check()
            yield piece


def overfitting_warning(progress: Progress) -> str | None:
    """Return a warning if the validation loss has not improved for RISING evaluations while the training loss fell."""
    if progress.evaluations_since_best != RISING or not progress.overfits:
        return None
    return (
        f"the validation loss has not fallen for {RISING} evaluations (best: {progress.best_val_loss:.4f} at step "
        f"{progress.best_step}) while the training loss fell: the model is overfitting (memorising the text); more "
        f"dropout, a smaller model or more text would help, and patience={RISING} stops here"
    )
