"""The benchmarks: each runs in miniature and prints its table. What they measure is for quiet machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MINIATURES = {
    "distributed.py": (["--runs=1", "--steps=1", "--preset=laptop", "--batch_size=4"], "2 processes of 1 thread, FSDP"),
    "estimate.py": (["--only=laptop, batch 128", "--memory"], "Predicted and measured"),
    "estimate_processes.py": (["--only=laptop, 2 processes", "--steps=3"], "Several processes, predicted and measured"),
    "generation.py": (["--runs=1", "--only=prefill,memory"], "memory: the weights of one token"),
    "prepare.py": (["--megabytes=20", "--loop_megabytes=0.1", "--steps=1", "--runs=1"], "large text, not in memory"),
    "serving.py": (["--runs=1", "--new_tokens=4", "--only=streams"], "Streams: 16 texts at once"),
    "time_to_loss.py": (["--dataset={text}", "--max_iters=4", "--eval_interval=2"], "Time to loss, 1 seed"),
    "tokenization.py": (["--runs=1", "--megabytes=0.01"], "Quill, characters"),
    "training.py": (["--runs=1", "--steps=1", "--batch_size=1"], "Training step, batch 1"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MINIATURES)
def test_a_benchmark_runs_in_miniature_and_prints_its_table(name: str, tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("It was a dark and stormy night, and the rain fell in torrents.\n" * 200, encoding="utf-8")
    arguments, expected = MINIATURES[name]
    words = [sys.executable, str(BENCHMARKS / name), *(word.format(text=text) for word in arguments)]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    # A busy machine may miss the 15 % allowed: then the exit code is 1, and the table is printed all the same.
    assert done.returncode == 0 or (name.startswith("estimate") and done.returncode == 1), done.stdout + done.stderr
    assert expected in done.stdout
