"""A small run for the tests of checkpoints, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quill.checkpoints.run_folder import save_checkpoint
from quill.errors import CheckpointError
from quill.model.build import Model, build_model
from quill.model.config import GPTConfig
from quill.tokenizers.char import CharTokenizer

SMALL = GPTConfig(vocab_size=3, block_size=4, n_layer=1, n_head=1, n_embd=4)


@pytest.fixture
def save_step() -> Callable[..., Path]:
    """Save a small model as this step of a run, with whatever is given changed, and return the folder."""

    def save(out: Path, step: int, best: bool = True, model: Model | None = None, **changes: Any) -> Path:
        torch.manual_seed(step)
        about = {
            "val_loss": 2.0, "text_sha256": "a" * 64, "training_tensors": {"rng.cpu": torch.get_rng_state()},
            "training_metadata": {},
        }  # fmt: skip
        model = model or build_model(SMALL)
        return save_checkpoint(out, model, CharTokenizer("abc"), step=step, best=best, **about | changes)

    return save


@pytest.fixture
def run(tmp_path: Path, save_step: Callable[..., Path]) -> Path:
    """A run whose best checkpoint is of step 3 and whose last is of step 6."""
    save_step(tmp_path / "out", 3)
    save_step(tmp_path / "out", 6, best=False)
    return tmp_path / "out"


@pytest.fixture
def refused() -> Callable[..., str]:
    """Check that a call is a CheckpointError of one line that matches, and return the line."""

    def check(call: Callable[[], object], match: str = ".") -> str:
        with pytest.raises(CheckpointError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        return str(caught.value)

    return check
