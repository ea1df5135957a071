"""Fine-tuning: a run starts from the weights of a trained model, and unknown characters are refused or get rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quill
from quill.checkpoints.run_folder import load_checkpoint
from quill.errors import ConfigError, TokenizerError
from quill.model.config import ModernConfig
from quill.runs.init_from import moved_table

start: Any = quill.run
TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "dropout": 0.0, "batch_size": 4, "max_iters": 4,
    "eval_interval": 4, "eval_iters": 2, "sample_tokens": 0, "warmup_iters": 2, "device": "cpu", "progress": False,
}  # fmt: skip
CLASSIC = {"architecture": "classic"}
MODERN = {"architecture": "modern", "optimizer": "muon", "ngram": 3, "ngram_rows": 997}
SHORT = {name: TINY[name] for name in ("batch_size", "max_iters", "eval_interval", "eval_iters", "sample_tokens")}
TUNE = SHORT | {"device": "cpu", "progress": False, "learning_rate": 1e-4, "warmup_iters": 0}


@pytest.mark.parametrize("kind", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_the_first_evaluation_is_that_of_the_model_it_starts_from(here: Path, kind: dict) -> None:
    start(dataset="my.txt", out_dir="out", **(TINY | kind))
    recipe = {name: kind[name] for name in kind if name == "optimizer"}
    losses: list[dict] = []
    run = start(init_from="out", dataset="my.txt", out_dir="tuned", tracker=losses.append, **TUNE, **recipe)
    first = next(event for event in losses if event["event"] == "evaluation")
    assert first["val_loss"] == pytest.approx(load_checkpoint(here / "out").val_loss, abs=1e-6)
    assert run.settings["n_embd"] == 8 and run.settings["architecture"] == kind["architecture"]


@pytest.mark.parametrize("kind", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_unknown_characters_are_refused_by_name_or_given_rows(here: Path, kind: dict) -> None:
    start(dataset="my.txt", out_dir="out", **(TINY | kind))
    (here / "greek.txt").write_text((here / "my.txt").read_text(encoding="utf-8") + "αβγ and so on. " * 30, "utf-8")
    with pytest.raises(TokenizerError, match="α"):
        start(init_from="out", dataset="greek.txt", out_dir="tuned", **TUNE)
    assert not (here / "tuned").exists()
    run = start(init_from="out", vocab="extend", dataset="greek.txt", out_dir="tuned", **(TUNE | {"max_iters": 1}))
    before, after = load_checkpoint(here / "out"), load_checkpoint(here / "tuned")
    new = set((here / "greek.txt").read_text(encoding="utf-8")) - set((here / "my.txt").read_text(encoding="utf-8"))
    assert after.config.vocab_size == before.config.vocab_size + len(new)
    assert after.tokenizer.decode([0, 1, 2]) == before.tokenizer.decode([0, 1, 2])
    text = "KING 7:"
    old, new = quill.load("out", device="cpu"), run.load(device="cpu", checkpoint="last")
    known = before.config.vocab_size
    torch.testing.assert_close(new.logits(text)[:, :known], old.logits(text), atol=0.05, rtol=0.05)
    assert "α" in new.tokenizer.decode(new.tokenizer.encode("α"))
    resumed = start(resume=True, out_dir="tuned", max_iters=3, progress=False)
    assert resumed.step == 3


def test_a_weights_file_alone_is_enough_to_start_from(here: Path) -> None:
    start(dataset="my.txt", out_dir="out", **TINY)
    lone = here / "weights.safetensors"
    lone.write_bytes((load_checkpoint(here / "out").path / "model.safetensors").read_bytes())
    assert start(init_from=str(lone), dataset="my.txt", out_dir="tuned", **TUNE).reason == "finished"


def test_a_shape_other_than_the_models_is_refused(here: Path) -> None:
    start(dataset="my.txt", out_dir="out", **TINY)
    with pytest.raises(ConfigError, match="n_embd=16 is not the shape of out"):
        start(init_from="out", dataset="my.txt", out_dir="tuned", n_embd=16, **TUNE)
    assert start(init_from="out", dataset="my.txt", out_dir="tuned", dropout=0.3, **TUNE).settings["dropout"] == 0.3


def test_init_from_works_on_the_command_line(quill, here: Path) -> None:
    flags = [f"--{name}={value}" for name, value in TINY.items() if name != "progress"]
    assert quill("train", "my.txt", *flags)[0] == 0
    tune = [f"--{name}={value}" for name, value in TUNE.items() if name != "progress"]
    code, out, error = quill("train", "my.txt", "--init_from=out", "--out_dir=tuned", *tune)
    assert (code, error) == (0, "") and "finished" in out
    code, _, error = quill("train", "my.txt", "--init_from=missing", "--out_dir=other", *tune)
    assert code == 2 and "missing" in error


@pytest.mark.parametrize("n", [2, 3])
def test_a_table_with_a_row_for_every_ngram_is_moved_exactly(n: int) -> None:
    before, after = (ModernConfig(vocab_size=v, n_embd=6, n_head=3, ngram=n, ngram_rows=10**6) for v in (3, 5))
    rows = 4**n
    old = np.arange(rows, dtype=np.float32)[:, None].repeat(6, 1)
    table = moved_table(old, f"ngram_embedding.tables.{n - 2}.weight", before, after)
    assert table is not None and table.shape == (6**n, 6)
    for tokens in np.ndindex(*[4] * n):  # 3 stands for "before the text" in the small vocabulary, 5 in the large one
        small = sum(t * 4**k for k, t in enumerate(tokens))
        large = sum((5 if t == 3 else t) * 6**k for k, t in enumerate(tokens))
        assert table[large, 0] == old[small, 0]
    hashed = ModernConfig(vocab_size=5, n_embd=6, n_head=3, ngram=n, ngram_rows=31)
    assert moved_table(old, f"ngram_embedding.tables.{n - 2}.weight", before, hashed) is None
