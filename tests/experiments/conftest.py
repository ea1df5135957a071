"""A text that is long enough for a small experiment, and settings so small that each takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 6,000 characters, half of which repeat the character before."""
    generator = np.random.default_rng(0)
    letters = [LETTERS[i] for i in generator.integers(0, len(LETTERS), 3000)]
    file = tmp_path_factory.mktemp("text") / "letters.txt"
    file.write_text("".join(2 * letter for letter in letters), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> dict[str, Any]:
    """Settings of the smallest experiment, for any that trains models."""
    return {
        "dataset": str(text_file),
        "data_dir": str(text_file.parent / "data"),
        "block_size": 8,
        "n_embd": 8,
        "n_head": 2,
        "batch_size": 2,
        "steps": 4,
        "seeds": 2,
        "windows": 9,
    }
