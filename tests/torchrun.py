"""What tests do with runs of several processes, each a real one under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from quill.checkpoints.format import read_tensors
from quill.checkpoints.run_folder import find_checkpoint

TINY = [
    "train", "--dataset=pydoc", "--device=cpu", "--n_layer=2", "--n_embd=32", "--n_head=2", "--block_size=32",
    "--batch_size=4", "--gradient_accumulation_steps=2", "--warmup_iters=5", "--eval_interval=25", "--eval_iters=2",
    "--sample_tokens=20", "--log_interval=1",
]  # fmt: skip
CLASSIC = ["--dropout=0"]
MODERN = ["--architecture=modern", "--optimizer=muon", "--ngram=3", "--ngram_rows=1000", "--data_order=shuffled"]
WITHOUT_DROPOUT = ["--dropout=0", "--ngram_dropout=0"]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"} | more


def quill(folder: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command of Quill to its end, under torchrun if it has several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "quill", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8", check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def train(folder: Path, out: str, *flags: str, processes: int = 1) -> list[dict[str, Any]]:
    """Train 50 steps, and return the events of metrics.jsonl."""
    done = quill(folder, *TINY, *flags, f"--out_dir={out}", "--max_iters=50", processes=processes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: quill generate") == 1 and "Traceback" not in done.stderr
    return events(folder / out)


def events(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(events: list[dict[str, Any]]) -> list[float]:
    """Return every loss and gradient norm that a run reported, in order."""
    names = ("train_loss", "val_loss", "gradient_norm")
    return [e[name] for e in events if e["event"] in ("step", "evaluation") for name in names if name in e]


def state_of(out_dir: Path) -> dict[str, Any]:
    folder = find_checkpoint(out_dir, "last")
    tensors = read_tensors(folder / "model.safetensors")[0] | read_tensors(folder / "training.safetensors")[0]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
