"""A small text as a dataset, and a recipe that learns it in a blink."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quill.model.config import GPTConfig
from quill.text.dataset import Dataset, prepare_dataset
from quill.training.config import TrainConfig

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.\n" * 40


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "fox.txt").write_text(TEXT, encoding="utf-8")
    return prepare_dataset(str(folder / "fox.txt"), data_dir=folder / "data")


@pytest.fixture
def model_config(dataset: Dataset) -> GPTConfig:
    return GPTConfig(dataset.tokenizer.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.2)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a TrainConfig for a short run, with whatever is given changed; `out` names its folder."""

    def make(out: str = "out", **changes: object) -> TrainConfig:
        short = TrainConfig(
            dataset="fox", out_dir=str(tmp_path / out), batch_size=4, max_iters=12, warmup_iters=2, eval_interval=4,
            eval_iters=2, log_interval=3, sample_tokens=0, device="cpu", learning_rate=1e-2,
        )  # fmt: skip
        return replace(short, **changes)  # type: ignore[arg-type]

    return make
