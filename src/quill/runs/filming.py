"""The film of a run: its recorder (lab/film) as the `watch` of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quill.generation.sample import default_prompt

if TYPE_CHECKING:
    from quill.data.mixed_dataset import AnyDataset
    from quill.model.build import Model
    from quill.model.config import ModelConfig
    from quill.training.loop import Watch
    from quill.training.state import Progress


def film_watch(
    out_dir: Path, config: ModelConfig, dataset: AnyDataset, seed: int, resume: bool, warn: Callable[[str], None]
) -> Watch:
    """Return a function that adds the frames of a run to film.safetensors in its folder."""
    from quill.lab.film.format import NAME, Evaluation
    from quill.lab.film.recorder import FilmRecorder

    tokenizer = dataset.tokenizer
    prompt = tokenizer.encode(default_prompt(tokenizer))
    recorder = FilmRecorder(
        out_dir / NAME, config, tokenizer, dataset.val, prompt, seed=seed, resume=resume, warn=warn
    )  # fmt: skip

    def watch(model: Model, progress: Progress, total: int) -> int:
        known = Evaluation(progress.evaluated_step, progress.train_loss, progress.val_loss)
        return recorder(model, progress.step, total, known)

    return watch
